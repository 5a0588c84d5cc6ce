"""A ComfyUI server without a window, reached over its HTTP API: graphs in, histories and files out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")
START_SECONDS, RUN_SECONDS = 180, 120


class Failed(Exception):
    """What ComfyUI shows of a node that raised, or of a graph that it does not take."""


class Server:
    """A server with folders of its own.

    Args:
        python: Interpreter of its environment.
        source: A copy of ComfyUI.
        folder: Folder with `models` and `custom_nodes`.
        environment: Environment variables of the process.
    """

    def __init__(self, python: Path, source: str, folder: Path, environment: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.log = folder, folder / "server.log"
        command = [python, f"{source}/main.py", "--cpu", "--base-directory", folder, "--port", str(self.port)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--preview-method", "none"]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdout=log, stderr=subprocess.STDOUT, cwd=source
            )
        self._wait()
        self.kinds: dict[str, Any] = self.get("/object_info")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")[-3000:]
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise AssertionError(self.log.read_text(encoding="utf-8")[-3000:])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.loads(answer.read())

    def run(self, graph: Graph) -> dict[str, Any]:
        """Run a graph and return what its output nodes showed, by node."""
        request = urllib.request.Request(
            self.address + "/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                name = json.loads(answer.read())["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode()) from error
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            history = self.get(f"/history/{name}")
            if name in history:
                return self._outputs(history[name])
            time.sleep(0.1)
        raise AssertionError(self.log.read_text(encoding="utf-8")[-3000:])

    def _outputs(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        for kind, facts in entry["status"]["messages"]:
            if kind == "execution_error":
                raise Failed(f"node {facts['node_id']} {facts['node_type']}: {facts['exception_message']}")
        return dict(entry["outputs"])

    def graph_of(self, workflow: Mapping[str, Any]) -> Graph:
        """Return the graph that the page sends for a workflow file, from the widgets that nodes have here."""
        sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        graph: Graph = {}
        for node in workflow["nodes"]:
            if node["type"] not in self.kinds:  # a note
                continue
            inputs = {each["name"]: sources[each["link"]] for each in node["inputs"] if each.get("link") is not None}
            values = list(node.get("widgets_values", []))
            known = self.kinds[node["type"]]["input"]
            for name, kind in [*known.get("required", {}).items(), *known.get("optional", {}).items()]:
                if name in inputs or not (isinstance(kind[0], list) or kind[0] in WIDGETS):
                    continue
                inputs[name] = values.pop(0)
                if name in ("seed", "noise_seed"):
                    values.pop(0)  # what becomes of the seed after a run
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        return graph


def environment_of(stubs: Path, package: Path) -> dict[str, str]:
    """Return the environment of a server: no GPU, no network, and this package."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(stubs), str(package)]),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
