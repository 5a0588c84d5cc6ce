"""The mathematics once more, slowly: numpy, float64, dense features x features matrices, loops; no code of the package.

Equations: docs/maths.md. A test that compares with this file compares two independent readings of them.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def dense_edit(reads: list[Array], writes: list[Array], strengths: list[float]) -> Array:
    """The matrix `I - V G^+ L A` of a stack; reads and writes are one (rank, features) array per adapter."""
    A, V = np.concatenate(reads), np.concatenate(writes).T
    dials = np.concatenate([np.full(len(read), strength) for read, strength in zip(reads, strengths, strict=True)])
    return np.eye(A.shape[1]) - V @ np.linalg.pinv(A @ V) @ np.diag(dials) @ A


def dense_shrunk(reads: list[Array], writes: list[Array], dials: Array, share: float) -> Array:
    """The matrix `I - V G^-1 L A`, singular values of G at least `(1 - t) s + t`, reads and writes of equal length."""
    A, V = np.concatenate(reads), np.concatenate(writes).T
    for row in range(len(A)):
        length = np.sqrt(np.linalg.norm(A[row]) * np.linalg.norm(V[:, row]))
        A[row] *= length / np.linalg.norm(A[row])
        V[:, row] *= length / np.linalg.norm(V[:, row])
    G = A @ V
    values, turns = np.linalg.eigh(G.T @ G)
    sizes = np.sqrt(values)
    shrunk = G @ turns @ np.diag([max(s, (1 - share) * s + share) / s for s in sizes]) @ turns.T
    return np.eye(A.shape[1]) - V @ np.linalg.inv(shrunk) @ dials @ A


def dense_added(reads: list[Array], writes: list[Array], strengths: list[float]) -> Array:
    """The matrix `I - sum lam V A` of additive edits, which do not mind each other."""
    edits = [lam * write.T @ read for read, write, lam in zip(reads, writes, strengths, strict=True)]
    return np.eye(reads[0].shape[1]) - np.sum(edits, axis=0)


def edit_rows(rows: Array, matrix: Array) -> Array:
    """Apply `x' = matrix x` to one row after the other."""
    return np.stack([matrix @ row for row in rows])


def second_moment(rows: Array, centred: bool = False, weights: Array | None = None) -> Array:
    """Mean of the outer products of rows, or of rows less their mean."""
    if weights is None:
        weights = np.ones(len(rows))
    middle = rows.mean(axis=0) if centred else np.zeros(rows.shape[1])
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for row, weight in zip(rows, weights, strict=True):
        total += weight * np.outer(row - middle, row - middle)
    return total / weights.sum()


def contrastive_vector(differences: Array, neutral: Array, r: Array, components: int, contrast: float) -> Array:
    """Unit vector along `U_k U_k^T r`, from the dense eigenvectors, positive eigenvalues only."""
    values, vectors = np.linalg.eigh(second_moment(differences) - contrast * second_moment(neutral, centred=True))
    v = np.zeros_like(r)
    taken = 0
    for index in np.argsort(-values):
        if taken < components and values[index] > 1e-9 * np.abs(values).max():
            v += vectors[:, index] * (vectors[:, index] @ r)
            taken += 1
    return v / np.sqrt(v @ v)


def contrastive_vector_by_size(differences: Array, neutral: Array, r: Array, components: int) -> Array:
    """The same with eigenvalues ordered by size, as an SVD would: what the sign rule guards against."""
    values, vectors = np.linalg.eigh(second_moment(differences) - second_moment(neutral, centred=True))
    chosen = vectors[:, np.argsort(-np.abs(values))[:components]]
    v = chosen @ (chosen.T @ r)
    return v / np.sqrt(v @ v)


def ridge_reads(writes: Array, moment: Array, epsilon: float) -> Array:
    """Joint reads `(V^T M V)^-1 V^T M` with `M = (S + e I)^-1` inverted as a whole; one write per row."""
    features = moment.shape[0]
    M = np.linalg.inv(moment + epsilon * np.trace(moment) / features * np.eye(features))
    return np.linalg.inv(writes @ M @ writes.T) @ writes @ M


def leace_eraser(concept: Array, safe: Array) -> Array:
    """`I - W^+ P W`, whitening and projection as the LEACE paper has them (theorem 4.3), linear part."""
    rows = np.concatenate([concept, safe])
    labels = np.concatenate([np.ones(len(concept)), np.zeros(len(safe))])
    values, vectors = np.linalg.eigh(second_moment(rows, centred=True))
    W, W_plus = np.zeros((rows.shape[1],) * 2), np.zeros((rows.shape[1],) * 2)
    for value, vector in zip(values, vectors.T, strict=True):
        if value > 1e-9 * values.max():
            W += np.outer(vector, vector) / np.sqrt(value)
            W_plus += np.outer(vector, vector) * np.sqrt(value)
    cross = np.zeros(rows.shape[1])
    for row, label in zip(rows, labels, strict=True):
        cross += (row - rows.mean(axis=0)) * (label - labels.mean()) / len(rows)
    whitened = W @ cross
    return np.eye(rows.shape[1]) - W_plus @ np.outer(whitened, whitened) @ W / (whitened @ whitened)


def nearest_distances(rows: Array, others: Array) -> Array:
    """Distance of each row to the nearest of the others, by two loops."""
    return np.array([min(np.sqrt(((row - other) ** 2).sum()) for other in others) for row in rows])


def uce_weight(
    weight: Array, concepts: Array, guides: Array, preserved: Array, ridge: float, erase: float, keep: float
) -> Array:
    """UCE's closed form for one weight, as the paper sums it up: values times inverse of moments."""
    features = weight.shape[1]
    value, moment = ridge * weight, ridge * np.eye(features)
    for concept, guide in zip(concepts, guides, strict=True):
        value = value + erase * np.outer(weight @ guide, concept)
        moment = moment + erase * np.outer(concept, concept)
    for token in preserved:
        value = value + keep * np.outer(weight @ token, token)
        moment = moment + keep * np.outer(token, token)
    return value @ np.linalg.inv(moment)


def rece_weights(
    weights: list[Array],
    concepts: Array,
    guides: Array,
    preserved: Array,
    rounds: int,
    ridge: float = 0.1,
    search: float = 0.1,
) -> list[Array]:
    """RECE's loop: UCE on every weight, then on the tokens that bring the old values back most, with one l for all."""
    features = weights[0].shape[1]
    penalty = search * np.trace(sum(weight.T @ weight for weight in weights)) / features
    ridge = ridge * (concepts**2).sum(axis=1).mean() / 768
    current, tokens = weights, concepts
    for _ in range(rounds + 1):
        current = [uce_weight(weight, tokens, guides, preserved, ridge, 1.0, 0.1) for weight in current]
        left = penalty * np.eye(features) + sum(weight.T @ weight for weight in current)
        right = sum(weight.T @ old for weight, old in zip(current, weights, strict=True))
        tokens = np.stack([np.linalg.inv(left) @ right @ concept for concept in concepts])
    return current


def cure_eraser(forget: Array, retain: Array, sharpness: float) -> Array:
    """CURE's `I - (P_f - P_f P_r)` from eigenvectors of the dense moments."""
    projectors = []
    for rows in (forget, retain):
        values, vectors = np.linalg.eigh(rows.T @ rows)
        share = np.clip(values, 0, None) / values.sum()
        projectors.append(vectors @ np.diag(sharpness * share / ((sharpness - 1) * share + 1)) @ vectors.T)
    return np.eye(forget.shape[1]) - projectors[0] + projectors[0] @ projectors[1]
