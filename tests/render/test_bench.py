"""The benchmark's floor is rendered by the formula's own modules: what these ask of each other has to be there for it, too."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml


@pytest.fixture
def floor(helpers, monkeypatch):
    monkeypatch.syspath_prepend(str(helpers.root / "tests/bench"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # it puts the lab's library there
    import floor

    yield floor
    sys.modules.pop("floor")


def test_the_floor_renders_scripts_that_bash_can_read(floor, tmp_path):
    nodes = [SimpleNamespace(name=f"controller-{i}", address=f"10.8.0.10{i}") for i in (1, 2, 3)]
    written = {}
    floor.master.write_pillar(
        SimpleNamespace(root=tmp_path / "master", write=lambda path, text: written.update({path: text})), nodes
    )
    formula = floor.Formula(yaml.safe_load(written["/srv/pillar/kubernetes_controller.sls"])["kubernetes_controller"])
    scripts = [floor._pki(formula, formula.cluster())]
    scripts += [floor._node(formula, formula.node(node.name, node.address), first=node is nodes[0]) for node in nodes]
    for script in scripts:
        read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")
