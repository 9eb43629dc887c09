"""What a run imports: none of the frameworks that it computes nothing with, where they are installed."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("tensorflow", "jax", "jaxlib", "flax")
IMPORTS = f"""
import sys
import mxsweep.runs.evaluate_config, mxsweep.training.loop
import datasets
assert datasets.config.TF_AVAILABLE and datasets.config.JAX_AVAILABLE, "made packages were not seen"
print(*sorted(set({FRAMEWORKS!r}) & set(sys.modules)))
"""


def test_a_run_imports_no_other_framework_that_is_installed(tmp_path: Path) -> None:
    for name in FRAMEWORKS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("__version__ = '2.99'\n")
        about = tmp_path / f"{name}-2.99.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.99\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("USE_TF", "USE_JAX", "USE_TORCH")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
