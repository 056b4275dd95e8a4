"""The papers' formulas in PyTorch and float64, which `against_pytorch.py` runs.

They use probabilities, as the papers do. Numerical safety for logits of any size is the
task of the losses that are compared, not of these formulas.
"""

import itertools
import sys
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

BOUND = 1e-5


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence of each row."""
    return (p * (p / q).log()).sum(-1)


def kd(t: Tensor, s: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Hinton, Vinyals, Dean 2015, section 2."""
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    return temperature**2 * kl(p, q).mean()


def reverse_kl(t: Tensor, s: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Gu et al. 2024, equation 1: the arguments change places."""
    return kd(s, t, temperature, labels)


def jeffreys(t: Tensor, s: Tensor, temperature: float, labels: Tensor) -> Tensor:
    """Jeffreys 1946: the sum of both directions."""
    return kd(t, s, temperature, labels) + kd(s, t, temperature, labels)


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


def fitnets(t: Tensor, s: Tensor) -> Tensor:
    """Romero et al. 2015, equation 3, the mean for half the sum."""
    return (t - s).pow(2).flatten(1).mean(1).mean()


def attention_transfer(t: Tensor, s: Tensor) -> Tensor:
    """Zagoruyko, Komodakis 2017, section 3.1, the norm squared as in their code."""
    maps = [x.abs().pow(2).sum(-1).flatten(1) for x in (t, s)]
    of_teacher, of_student = (m / m.norm(dim=1, keepdim=True) for m in maps)
    return (of_student - of_teacher).norm(dim=1).pow(2).mean()


def rkd_distance(t: Tensor, s: Tensor) -> Tensor:
    """Park et al. 2019, section 3.2.1, the mean for the sum."""
    i, j = torch.tensor(list(itertools.permutations(range(len(t)), 2))).T

    def psi(x: Tensor) -> Tensor:
        distances = (x[i] - x[j]).norm(dim=1)
        return distances / distances.mean()

    return huber_loss(psi(s.flatten(1)), psi(t.flatten(1)), delta=1.0)


def rkd_angle(t: Tensor, s: Tensor) -> Tensor:
    """Park et al. 2019, section 3.2.2, the mean for the sum."""
    i, j, k = torch.tensor(list(itertools.permutations(range(len(t)), 3))).T

    def psi(x: Tensor) -> Tensor:
        to_i, to_k = x[i] - x[j], x[k] - x[j]
        to_i, to_k = (e / e.norm(dim=1, keepdim=True) for e in (to_i, to_k))
        return (to_i * to_k).sum(1)

    return huber_loss(psi(s.flatten(1)), psi(t.flatten(1)), delta=1.0)


def similarity_preserving(t: Tensor, s: Tensor) -> Tensor:
    """Tung, Mori 2019: row-normalised similarities."""

    def g(x: Tensor) -> Tensor:
        q = x.flatten(1)
        products = q @ q.T
        return products / products.norm(dim=1, keepdim=True)

    return (g(t) - g(s)).pow(2).sum() / len(t) ** 2


FORMULAS = {
    "KD": kd,
    "reverse KL": reverse_kl,
    "Jeffreys": jeffreys,
    "JSD(0.1)": partial(jsd, beta=0.1),
    "JSD(0.5)": partial(jsd, beta=0.5),
    "DKD": dkd,
    "DIST": dist,
    "standardised KD": partial(standardised, loss=kd),
    "standardised DKD": partial(standardised, loss=dkd),
}
FORMULAS_OF_FEATURES = {
    "FitNets": fitnets,
    "attention transfer": attention_transfer,
    "RKD distance": rkd_distance,
    "RKD angle": rkd_angle,
    "similarity preserving": similarity_preserving,
}


def right(given: dict, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the value and the gradient that a formula says."""
    batch, setting, name = key.split("/")

    def of(what: str) -> Tensor:
        return torch.from_numpy(given[f"{batch}/{what}"])

    if name in FORMULAS:
        student = of("student").double().requires_grad_()
        teacher, labels = of("teacher").double(), of("labels")
        value = FORMULAS[name](teacher, student, float(setting), labels)
    else:  # the setting says which of the student's features
        student = of(setting).double().requires_grad_()
        value = FORMULAS_OF_FEATURES[name](of("teacher features").double(), student)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach().numpy(), gradient.numpy()


def compare(path: str) -> bool:
    """Print how far each value and gradient is off; return whether any is too far."""
    given = np.load(path)
    names = [*FORMULAS, *FORMULAS_OF_FEATURES]
    worst: dict[str, list[float]] = {name: [0.0, 0.0] for name in names}
    compared = [key.removesuffix("/value") for key in given if key.endswith("/value")]
    for key in compared:
        name = key.split("/")[-1]
        for index, (expected, what) in enumerate(
            zip(right(given, key), ("value", "gradient"), strict=True)
        ):
            off = np.abs(given[f"{key}/{what}"] - expected).max()
            off = float(off / np.abs(expected).max())
            # unlike `max`, it keeps NaN
            worst[name][index] = float(np.maximum(worst[name][index], off))
    print(f"PyTorch {torch.__version__}: largest relative differences")
    print(f"{'':22s} {'value':>9s} {'gradient':>9s}")
    for name, (value, gradient) in worst.items():
        print(f"{name:22s} {value:9.1e} {gradient:9.1e}")
    missing = set(names) - {key.split("/")[-1] for key in compared}
    if missing:
        print(f"not compared: {sorted(missing)}")
    return bool(missing) or not (np.array(list(worst.values())) <= BOUND).all()


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1]))
