"""Push an adapter to the Hub with its card, pull it at that commit, and load it from there.

hf auth login
python examples/05_push_and_pull.py YOUR-NAME/no-red [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch

from unlearning_adapters import BuildConfig, build_adapter, load_adapter, load_concept, load_shapeworld
from unlearning_adapters.hub.hub import pull_adapter

if len(sys.argv) < 2:
    sys.exit(f"Name a repository of yours to push to: python {sys.argv[0]} YOUR-NAME/no-red")
repository = sys.argv[1]
folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())

pipe = load_shapeworld()
adapter = build_adapter(pipe, load_concept("red"), BuildConfig(pairs=5))
url = adapter.push_to_hub(repository, private=True, license="apache-2.0", commit_message="Forget red")
print("pushed:", url)

pulled = pull_adapter(repository, folder / "pulled")  # file and card, checked before they are written
print("pulled:", pulled.file, "at", pulled.commit)

pipe.load_unlearning_adapter(repository, revision=pulled.commit)  # a commit never changes, a branch may
print("active:", pipe.get_active_unlearning_adapters())

again = load_adapter(pulled.file)
same = all(torch.equal(again.directions[site].read, adapter.directions[site].read) for site in adapter.sites)
print("the directions are the same, bit for bit:", same)
