"""The artefacts run where neither this package nor the model is."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

PROGRAMS = {
    "saved_model": """
        import tensorflow as tf
        saved = tf.saved_model.load(f"{directory}/saved_model")
        arrays = {name: tf.constant(array) for name, array in arrays.items()}
        outputs = saved.signatures["serving_default"](**arrays)
        outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
    """,
    "onnx": """
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{directory}/model.onnx")
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, arrays)))
        forbidden |= {"keras", "tensorflow"}
    """,
    "litert": """
        from ai_edge_litert.interpreter import Interpreter
        interpreter = Interpreter(model_path=f"{directory}/model.tflite")
        outputs = interpreter.get_signature_runner("serving_default")(**arrays)
        forbidden |= {"keras", "tensorflow"}
    """,
}

FRAME = """
import sys
import numpy as np
directory, source, target = sys.argv[1:]
arrays = dict(np.load(source))
forbidden = {{"keras_distill"}}
{program}
assert not forbidden & set(sys.modules), forbidden & set(sys.modules)
np.savez(target, **outputs)
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_artefact(exported, conv_model, conv_batch, tmp_path, name):
    directory, _ = exported
    batch = {key: array[:3] for key, array in conv_batch.items()}
    np.savez(tmp_path / "in.npz", **batch)
    program = FRAME.format(program=textwrap.dedent(PROGRAMS[name]))
    paths = [str(p) for p in (directory, tmp_path / "in.npz", tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = dict(np.load(tmp_path / "out.npz"))
    expected = conv_model(batch, training=False)
    assert set(outputs) == set(expected)
    for key, want in expected.items():
        np.testing.assert_allclose(outputs[key], want, rtol=1e-5, atol=1e-5)
