"""Compiles the map of names of stable-diffusion.cpp, out of a copy of its source, and asks it where keys of a file end.

python sd_cpp.py SOURCE JOBS.json

Its file `name_conversion.cpp` is compiled as it is. What it includes of the rest (ggml, files, tensors) is stood in for
by the few functions on texts that it calls. A key is read if it becomes the name that the model's own weight becomes.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(sys.argv[1]) / "src"
VERSIONS = {
    "wan": "VERSION_WAN2",
    "wan-vace": "VERSION_WAN2",
    "hunyuan-video-1.5": "VERSION_HUNYUAN_VIDEO",
    "ltx-2": "VERSION_LTXAV",
}
STAND_INS = {
    "ggml.h": "#pragma once\nenum ggml_type { GGML_TYPE_F32 };\n",
    "ggml-backend.h": "#pragma once\n",
    "core/ordered_map.hpp": """#pragma once
#include <map>
template <class K, class V> using OrderedMap = std::map<K, V>;
""",
    "model_io/tensor_storage.h": "#pragma once\nstruct TensorStorage {};\n",
    "core/util.h": """#pragma once
#include <cstring>
#include <sstream>
#include <string>
#include <vector>
#define LOG_DEBUG(...)
inline bool starts_with(const std::string& s, const std::string& t) { return s.rfind(t, 0) == 0; }
inline bool ends_with(const std::string& s, const std::string& t) {
    return s.size() >= t.size() && s.compare(s.size() - t.size(), t.size(), t) == 0;
}
inline bool contains(const std::string& s, const std::string& t) { return s.find(t) != std::string::npos; }
inline std::vector<std::string> split_string(const std::string& s, char mark) {
    std::vector<std::string> parts;
    std::stringstream stream(s);
    for (std::string part; std::getline(stream, part, mark);) parts.push_back(part);
    return parts;
}
""",
    "main.cpp": """#include <iostream>
#include "name_conversion.h"
int main(int, char** arguments) {
    const std::string kind = arguments[1];
    const SDVersion version = kind == "VERSION_WAN2"            ? VERSION_WAN2
                              : kind == "VERSION_HUNYUAN_VIDEO" ? VERSION_HUNYUAN_VIDEO
                                                                : VERSION_LTXAV;
    for (std::string name; std::getline(std::cin, name);) std::cout << convert_tensor_name(name, version) << "\\n";
}
""",
}


def build(folder: Path) -> Path:
    """Return the program that turns names."""
    for name, text in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("name_conversion.cpp", "name_conversion.h", "model.h"):
        shutil.copy(SOURCE / name, folder / name)
    program = folder / "turn"
    command = ["g++", "-std=c++17", "-O0", "-I", folder, folder / "main.cpp", folder / "name_conversion.cpp"]
    subprocess.run([*command, "-o", program], check=True)
    return program


def turned(program: Path, version: str, names: list[str]) -> list[str]:
    """Return what the names become, in their order."""
    done = subprocess.run([program, version], input="\n".join(names) + "\n", capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def read(program: Path, job: dict) -> dict:
    version = VERSIONS[job["family"]]
    layers = turned(program, version, [f"model.diffusion_model.{name}.weight" for name in job["layers"]])
    wanted = {f"lora.{layer}.lora_{end}" for layer in layers for end in ("down", "up")}
    keys = list(job["keys"])
    names = dict(zip(keys, turned(program, version, [f"lora.{key}" for key in keys]), strict=True))
    found = set(names.values()) & wanted
    both = {name for name in found if {name.rpartition("_")[0] + end for end in ("_down", "_up")} <= found}
    return {"read": sorted(key for key, name in names.items() if name in both)}


with tempfile.TemporaryDirectory() as place:
    made = build(Path(place))
    results = [read(made, each) for each in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))]
Path(sys.argv[2]).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")
