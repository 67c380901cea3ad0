"""use_backend and show_config: forcing is obeyed or explained, and the state always comes back."""

import pytest
import torch

import strucfast as sf
from strucfast import _native
from strucfast.ops import _registry


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of .* got 'gpu'"), sf.use_backend("gpu"):
        pass


def test_restored_after_an_error():
    with pytest.raises(KeyError), sf.use_backend("reference"):
        assert _registry.current_backend() == "reference"
        raise KeyError
    assert _registry.current_backend() == "auto"


def test_nested():
    with sf.use_backend("reference"):
        with sf.use_backend("auto"):
            assert _registry.current_backend() == "auto"
        assert _registry.current_backend() == "reference"


def test_cuda_kernels_refuse_cpu_tensors():
    with sf.use_backend("cuda"), pytest.raises(RuntimeError, match="modulate: use_backend\\('cuda'\\) cannot run here"):
        sf.ops.modulate(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))


def test_compiled_code_follows_the_backend():
    """Dynamo guards on the module-level variable, so a forced backend recompiles instead of being ignored."""
    torch.compiler.reset()
    graphs = []

    def record(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(sf.ops.modulate, backend=record, fullgraph=True)
    args = torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(2, 3)
    with sf.use_backend("reference"):
        compiled(*args)
    assert graphs and not any("strucfast" in t for t in graphs[0])
    if _native.missing("cpu") is not None:
        pytest.skip(f"needs the CPU half: {_native.missing('cpu')}")
    compiled(*args)
    assert any("strucfast" in t for t in graphs[1])


def test_show_config_names_every_half_and_op(capsys):
    sf.show_config()
    text = capsys.readouterr().out
    for word in ("torch", *_native.HALVES, *_registry.names()):
        assert word in text
    for half in _native.HALVES:
        reason = _native.missing(half)
        assert reason is None or reason in text


def test_old_torch_is_refused(monkeypatch):
    import importlib

    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(ImportError, match=r"needs torch >= 2.10, found 2.9.1"):
        importlib.reload(sf)
    monkeypatch.undo()
    importlib.reload(sf)
