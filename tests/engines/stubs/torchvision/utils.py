"""No part of it is called."""
