"""Everything the doctor found, as one record and as doctor.json."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from hfcap.doctor.cost import Cost
from hfcap.doctor.dataset import DataFacts
from hfcap.doctor.findings import Findings
from hfcap.doctor.labels import LabelFacts
from hfcap.doctor.measurement import Measurement
from hfcap.doctor.pixels import PixelFacts
from hfcap.doctor.tokens import TokenFacts
from hfcap.doctor.train_generate_parity import AgreementFacts
from hfcap.doctor.weights import WeightFacts


@dataclass
class DoctorReport:
    """Facts by topic; None where the examination did not get that far."""

    recipe: str
    captioner: str
    method: str
    findings: Findings = field(default_factory=Findings)
    data: DataFacts | None = None
    tokens: TokenFacts | None = None
    pixels: PixelFacts | None = None
    weights: WeightFacts | None = None
    labels: LabelFacts | None = None
    agreement: AgreementFacts | None = None
    measured: Measurement | None = None
    cost: Cost | None = None

    @property
    def healthy(self) -> bool:
        """Whether no error was found."""
        return not self.findings.has_errors

    def as_json(self) -> dict[str, Any]:
        """Return the content of doctor.json; numbers that are not finite become null."""
        values = dataclasses.asdict(self)
        problems = values.pop("findings")["problems"]
        return {"schema_version": 1, "healthy": self.healthy, "problems": problems, **_finite(values)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
