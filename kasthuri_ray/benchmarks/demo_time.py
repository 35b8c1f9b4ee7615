"""How long `make demo` takes on this kind of processor: `python -m kasthuri_ray.benchmarks.demo_time` prints a line.

The figures are recorded, one for each kind of CPU in `hardware.RULES`; nothing is timed.
"""

from __future__ import annotations

import torch

from kasthuri_ray.hardware import processor_kind
from kasthuri_ray.process_resources import usable_cpus

MEASURED_CPUS = 2
# Minutes on two cores, and where they come from.
DEMO_MINUTES = {
    "avx2": (6.0, "EPYC Zen 3, 4 min 53 s and 6 min 6 s with an earlier recipe"),
    "avx512": (3.0, "Xeon without AMX, 2 min 47 s and 3 min 20 s with an earlier recipe"),
    "bf16": (3.5, "EPYC with AVX-512 bf16, 3 min 17 s"),
    "amx": (3.5, "Xeon, 3 min 27 s with an earlier recipe"),
    "arm": (8.0, "a guess; not measured"),
}


def demo_line(kind: str, cpus: int) -> str:
    """Return how long the demo takes.

    Parameters
    ----------
    kind : str
        Kind of the CPU, a key of `hardware.RULES`.
    cpus : int
        CPUs that this process may use.

    Returns
    -------
    str
        A line that names the machine that was measured; fewer CPUs take longer.
    """
    minutes, _ = DEMO_MINUTES[kind]
    here = f"this machine has {cpus}" if cpus != MEASURED_CPUS else "as many as this machine has"
    return f"The demo takes about {minutes:g} minutes on {MEASURED_CPUS} cores of this kind ({kind}); {here}."


if __name__ == "__main__":
    print(demo_line(processor_kind(torch.device("cpu")), usable_cpus()), flush=True)
