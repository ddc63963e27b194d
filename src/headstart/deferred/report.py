"""What was saved: counts and seconds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """What `Reuse` did so far.

    Attributes:
        num_computed: Samples that went through a frozen part.
        num_looked_up: Samples that did not have to, because their value was there.
        seconds_saved: What computing those would have taken, at the fastest pace that was measured.
        flops_saved: Floating-point operations that were not done.
        stored: What is stored.
        settings: In which chunks and memory format each was computed fastest.
        remarks: What was said to the user.
    """

    num_computed: int = 0
    num_looked_up: int = 0
    seconds_saved: float = 0.0
    flops_saved: int = 0
    stored: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def look_up(self, count: int, *, seconds: float, flops: int) -> None:
        """Count samples whose value was there; what one takes to compute."""
        self.num_looked_up += count
        self.seconds_saved += count * seconds
        self.flops_saved += count * flops

    def __str__(self) -> str:
        share = self.num_looked_up / max(1, self.num_looked_up + self.num_computed)
        text = f"frozen work: {self.num_computed:,} samples computed, {self.num_looked_up:,} looked up ({share:.0%}), "
        text += f"{self.seconds_saved:,.1f} s and {self.flops_saved / 1e12:,.3g} TFLOP saved"
        return "\n".join([text, *(f"{name}: fastest in {each}" for name, each in self.settings.items())])
