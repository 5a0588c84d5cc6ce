#!/usr/bin/env bash
# Pillow 13 beside Gradio: pip goes back three years without a word, to a Gradio that cannot be imported.
#
# Versions: gradio up to 6.31.0, pillow 13.0.0, Python 3.11, pip 23 and later.
# Expected: "no matching version", since gradio 6.31.0 says `pillow<13`, or a Gradio that works.
# Seen: gradio 3.36.1 (July 2023), the last one whose requirements set no upper bound for pillow. It sets none for
#       gradio_client either, takes the newest one, and `import gradio` fails:
#       ModuleNotFoundError: No module named 'gradio_client.serializing'
# What helps: pin pillow below 13 wherever Gradio 4 to 6.31 is installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'gradio<=6.31.0' 'pillow==13.0.0' 2>/dev/null
version=$("$folder/venv/bin/pip" list 2>/dev/null | awk '$1 == "gradio" {print $2}')
error=$("$folder/venv/bin/python" -c "import gradio" 2>&1 | tail -n 1 || true)
echo "gradio $version beside pillow 13.0.0; import: ${error:-works}"
[ "$version" = 3.36.1 ] && [ "$error" = "ModuleNotFoundError: No module named 'gradio_client.serializing'" ]
