"""The papers' formulas in PyTorch, float64; what `against_pytorch.py` runs.

Written down as the papers do, in probabilities: what is safe to compute with logits of
any size is the business of the losses that are compared.
"""

import sys
from functools import partial

import numpy as np
import torch
from torch import Tensor

BOUND = 1e-5


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence of each row."""
    return (p * (p / q).log()).sum(-1)


def kd(t: Tensor, s: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Hinton, Vinyals, Dean 2015, section 2."""
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    return temperature**2 * kl(p, q).mean()


def jsd(
    t: Tensor, s: Tensor, temperature: float, labels: Tensor, *, beta: float
) -> Tensor:
    """Agarwal et al. 2024, equation 1."""
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    mixture = beta * p + (1 - beta) * q
    both = beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
    return temperature**2 * both.mean()


def dkd(t: Tensor, s: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Zhao et al. 2022, equation 7, with the weights 1 and 8."""
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    total = torch.zeros((), dtype=t.dtype)
    for p_i, q_i, label in zip(p, q, labels, strict=True):
        others = torch.arange(len(p_i)) != label
        b_t = torch.stack([p_i[label], p_i[others].sum()])
        b_s = torch.stack([q_i[label], q_i[others].sum()])
        among_others = kl(p_i[others] / b_t[1], q_i[others] / b_s[1])
        total = total + kl(b_t, b_s) + 8.0 * among_others
    return temperature**2 * total / len(labels)


def dist(t: Tensor, s: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Huang et al. 2022, section 4, with the weights 1 and 2."""
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    rows = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p, q, strict=True)]
    columns = [
        torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p.T, q.T, strict=True)
    ]
    inter_class = 1.0 - torch.stack(rows).mean()
    intra_class = 1.0 - torch.stack(columns).mean()
    return temperature**2 * (1.0 * inter_class + 2.0 * intra_class)


def standardised(t: Tensor, s: Tensor, *arguments: object, loss: object) -> Tensor:
    """Sun et al. 2024, algorithms 1 and 2."""
    t, s = (
        (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
        for x in (t, s)
    )
    return loss(t, s, *arguments)


FORMULAS = {
    "KD": kd,
    "JSD(0.1)": partial(jsd, beta=0.1),
    "JSD(0.5)": partial(jsd, beta=0.5),
    "DKD": dkd,
    "DIST": dist,
    "standardised KD": partial(standardised, loss=kd),
    "standardised DKD": partial(standardised, loss=dkd),
}


def compare(path: str) -> bool:
    """Print how far each value and gradient is off; return whether any is too far."""
    given = np.load(path)
    worst: dict[str, list[float]] = {name: [0.0, 0.0] for name in FORMULAS}
    compared = [key.removesuffix("/value") for key in given if key.endswith("/value")]
    for key in compared:
        batch, temperature, name = key.split("/")
        teacher, student, labels = (
            torch.from_numpy(given[f"{batch}/{what}"])
            for what in ("teacher", "student", "labels")
        )
        student = student.double().requires_grad_()
        value = FORMULAS[name](teacher.double(), student, float(temperature), labels)
        (gradient,) = torch.autograd.grad(value, student)
        for index, (right, got) in enumerate(
            ((value, given[f"{key}/value"]), (gradient, given[f"{key}/gradient"]))
        ):
            right = right.detach().numpy()
            off = float(np.abs(got - right).max() / np.abs(right).max())
            # unlike `max`, it keeps NaN
            worst[name][index] = float(np.maximum(worst[name][index], off))
    print(f"PyTorch {torch.__version__}: largest relative differences")
    print(f"{'':18s} {'value':>9s} {'gradient':>9s}")
    for name, (value, gradient) in worst.items():
        print(f"{name:18s} {value:9.1e} {gradient:9.1e}")
    missing = set(FORMULAS) - {key.split("/")[-1] for key in compared}
    if missing:
        print(f"not compared: {sorted(missing)}")
    return bool(missing) or not (np.array(list(worst.values())) <= BOUND).all()


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1]))
