"""The sums over a mixture's components that `simulate_small` takes at each path, of the numbers of `mixture_small`.

With P'_k = log2(e)/2 P_k, in units of log 2:

    e_k = 2^(E_min - E_k),    E_k = (x - m_k)^T P'_k (x - m_k) - log2(e) log_scale_k,    G_k = P'_k (x - m_k)
    A = sum e_k G_k,          B = sum e_k (G_k . z) G_k,    S = sum e_k P'_k,            u = 2 ln 2 / sum e_k
    score = -u A,             Hess z = u (2 ln 2 B - S z - u A (A . z)),                 p = u S (spherical, diag)

Where all components are at hand at once, G_k . z counts from its mean (A . z) / sum e_k, and the term in A goes. Then
nothing cancels where one component outweighs the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_small import LOG2_E, dot, load_matrix, load_mean, load_precisions, precision_product, scaled, start_of
from .trajectory import HIGHEST, TWO_LN2

OVERFLOWN = tl.constexpr(2.7e38)  # as energy: below those of the components that fill up a block


@triton.jit
def load_components(
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    first,
    KIND: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
):
    """Load -log2(e) log_scale, means and P' of the components from `first` on; no P' if tied."""
    constants, means, precisions = (), (), ()
    for i in tl.static_range(COMPONENTS):
        k = first + i
        constants += (tl.load(log_scale_ptr + k) * -LOG2_E,)
        means += load_mean(means_ptr, k, D)
        precisions += load_precisions(precisions_ptr, k, 0.5 * LOG2_E, KIND, D)
    return constants, means, precisions


@triton.jit
def load_common(precisions_ptr, D: tl.constexpr):
    """Load P' if tied."""
    return load_matrix(precisions_ptr, 0.5 * LOG2_E, D)


# --- the mixture, as sums over components: sum e_k, A [D] and, with PRODUCT, A . z, B [D], S -------------------------


@triton.constexpr_function
def size_of_s(KIND, D):
    """Return the size of S: 1 if spherical, D if diag, a triangle's if full; 0 if tied, where it is P' sum e_k."""
    return {"spherical": 1, "diag": D, "tied": 0, "full": D * (D + 1) // 2}[KIND]


@triton.constexpr_function
def triangle(i, j, D):
    """Return the place of element (i, j) of a symmetric matrix in its upper triangle."""
    i, j = min(i, j), max(i, j)
    return i * D - i * (i - 1) // 2 + j - i


@triton.jit
def reciprocal(total):
    """Return 1 / a sum of weights, between 1 and K, where this is as good as a division and a third as long."""
    root = tl.rsqrt(total)
    return root * root


@triton.jit
def plus(sums, AT: tl.constexpr, weight, value):
    """Return sums[AT] + weight value; sums are 0 if empty."""
    if len(sums) == 0:
        return weight * value
    else:
        return tl.fma(weight, value, sums[AT])


@triton.jit
def energy_and_pull(x, constants, means, precisions, i, KIND: tl.constexpr, D: tl.constexpr):
    """Return E_k and G_k of the i-th component, the latter without the factor P'_k if spherical."""
    apart = ()
    for j in tl.static_range(D):
        apart += (x[j] - means[i * D + j],)
    if KIND == "spherical":
        pull = apart
        energy = tl.fma(dot(apart, apart), precisions[i], constants[i])
    else:
        pull = precision_product(precisions, start_of(i, KIND, D), apart, KIND)
        energy = constants[i]
        for j in tl.static_range(D):
            energy = tl.fma(apart[j], pull[j], energy)
    return energy, pull


@triton.jit
def absorb(
    low,
    sums,
    x,
    z,
    constants,
    means,
    precisions,
    KIND: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    PRODUCT: tl.constexpr,
    ALL: tl.constexpr,
):
    """Return the lowest energy and sums with these added. ALL: there are no others; G_k . z counts from its mean."""
    energies, pulls = (), ()  # pulls: G_k; if spherical without the factor P'_k
    for i in tl.static_range(COMPONENTS):
        energy, pull = energy_and_pull(x, constants, means, precisions, i, KIND, D)
        energies += (energy,)
        pulls += pull

    lowest = low
    for i in tl.static_range(COMPONENTS):
        lowest = tl.minimum(lowest, energies[i])
    if not ALL:
        shrink = tl.exp2(lowest - low)
        sums = scaled(sums, shrink)

    slopes, weights = (), ()  # G_k . z, and what pulls are weighed with
    for i in tl.static_range(COMPONENTS):
        if ALL and COMPONENTS == 1:
            e = tl.full(x[0].shape, 1.0, tl.float32)
        else:
            e = tl.exp2(lowest - energies[i])
        weight = e * precisions[i] if KIND == "spherical" else e
        added = (e if len(sums) == 0 else sums[0] + e,)
        for j in tl.static_range(D):
            added += (plus(sums, 1 + j, weight, pulls[i * D + j]),)
        if PRODUCT:
            slope = dot(pulls, z, i * D)
            if KIND == "spherical":
                slope *= precisions[i]
            slopes += (slope,)
            weights += (weight,)
            added += (plus(sums, 1 + D, e, slope),)
            for j in tl.static_range(D):
                if ALL:
                    added += (tl.zeros_like(e),)
                else:
                    added += (tl.fma(weight * slope, pulls[i * D + j], sums[2 + D + j]),)
            if KIND == "spherical":
                added += (weight if len(sums) == 0 else sums[2 + 2 * D] + weight,)
            elif KIND == "diag":
                for j in tl.static_range(D):
                    added += (plus(sums, 2 + 2 * D + j, e, precisions[i * D + j]),)
            elif KIND == "full":
                for j in tl.static_range(D):
                    for m in tl.static_range(j, D):
                        precision = precisions[(i * D + j) * D + m]
                        added += (plus(sums, 2 + 2 * D + triangle(j, m, D), e, precision),)
        sums = added
    if PRODUCT and ALL and COMPONENTS > 1:
        middle = sums[1 + D] * reciprocal(sums[0])
        central = ()
        for i in tl.static_range(COMPONENTS):
            weight = weights[i] * (slopes[i] - middle)
            added = ()
            for j in tl.static_range(D):
                added += (plus(central, j, weight, pulls[i * D + j]),)
            central = added
        sums = sums[: 2 + D] + central + sums[2 + 2 * D :]
    return lowest, sums


@triton.jit
def mixture_sums(
    x,
    z,
    resident,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    n_components,
    KIND: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Return the sums over all components at x. resident: `load_components` of all of them, or P' alone if tied."""
    low = tl.full(x[0].shape, HIGHEST, tl.float32)
    if RESIDENT:
        constants, means, precisions = resident
        low, sums = absorb(low, (), x, z, constants, means, precisions, KIND, D, COMPONENTS, PRODUCT, True)
    else:
        sums = ()
        for _ in tl.static_range(1 + D + (1 + D + size_of_s(KIND, D) if PRODUCT else 0)):
            sums += (tl.zeros_like(x[0]),)
        for first in range(0, n_components, COMPONENTS):
            constants, means, precisions = load_components(
                means_ptr, precisions_ptr, log_scale_ptr, first, KIND, D, COMPONENTS
            )
            if KIND == "tied":
                precisions = resident
            low, sums = absorb(low, sums, x, z, constants, means, precisions, KIND, D, COMPONENTS, PRODUCT, False)
    return sums


@triton.jit
def rates(sums, u, KIND: tl.constexpr, D: tl.constexpr):
    """Return p = u S of spherical (1 number) or diag covariances (D)."""
    values = ()
    for j in tl.static_range(1 if KIND == "spherical" else D):
        values += (u * sums[2 + 2 * D + j],)
    return values


@triton.jit
def heaviest_component(
    x,
    resident,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    n_components,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Return the full component of the lowest energy at x, the first of them; 0 where all overflow."""
    low = tl.full(x[0].shape, OVERFLOWN, tl.float32)
    heaviest = tl.zeros(x[0].shape, tl.int64)
    if RESIDENT:
        constants, means, precisions = resident
        for i in tl.static_range(COMPONENTS):
            energy, _ = energy_and_pull(x, constants, means, precisions, i, "full", D)
            heaviest = tl.where(energy < low, i, heaviest)
            low = tl.where(energy < low, energy, low)
    else:
        for first in range(0, n_components, COMPONENTS):
            constants, means, precisions = load_components(
                means_ptr, precisions_ptr, log_scale_ptr, first, "full", D, COMPONENTS
            )
            for i in tl.static_range(COMPONENTS):
                energy, _ = energy_and_pull(x, constants, means, precisions, i, "full", D)
                heaviest = tl.where(energy < low, first + i, heaviest)
                low = tl.where(energy < low, energy, low)
    return heaviest


@triton.jit
def load_axes(rotations_ptr, rates_ptr, component, D: tl.constexpr):
    """Load U, row by row, and p of each path's component."""
    rotation, p = (), ()
    for i in tl.static_range(D * D):
        rotation += (tl.load(rotations_ptr + component * (D * D) + i),)
    for j in tl.static_range(D):
        p += (tl.load(rates_ptr + component * D + j),)
    return rotation, p


@triton.jit
def turned(rotation, v, D: tl.constexpr):
    """Return U^T v; v where there is no U."""
    if len(rotation) == 0:
        return v
    else:
        values = ()
        for j in tl.static_range(D):
            value = rotation[j] * v[0]
            for i in tl.static_range(1, D):
                value = tl.fma(rotation[i * D + j], v[i], value)
            values += (value,)
        return values


@triton.jit
def turned_back(rotation, h, v, D: tl.constexpr):
    """Return U h and the diagonal of U diag(v) U^T; h and v where there is no U."""
    if len(rotation) == 0:
        return h, v
    else:
        values, diagonal = (), ()
        for i in tl.static_range(D):
            value, square = rotation[i * D] * h[0], rotation[i * D] * v[0] * rotation[i * D]
            for j in tl.static_range(1, D):
                u = rotation[i * D + j]
                value = tl.fma(u, h[j], value)
                square = tl.fma(u * v[j], u, square)  # not u u, for which all steps would keep registers
            values += (value,)
            diagonal += (square,)
        return values, diagonal


@triton.jit
def curvature(sums, u, z, resident, KIND: tl.constexpr, D: tl.constexpr, RESIDENT: tl.constexpr):
    """Return Hess z / u = 2 ln 2 B - S z - u A (A . z), [D], the last of which a central B contains."""
    along = sums[1 + D] * u
    values = ()
    for j in tl.static_range(D):
        value = sums[2 + D + j] * TWO_LN2
        if KIND == "spherical":
            value = tl.fma(-sums[2 + 2 * D], z[j], value)
        elif KIND == "diag":
            value = tl.fma(-sums[2 + 2 * D + j], z[j], value)
        elif KIND == "tied":
            precisions = resident[2] if RESIDENT else resident
            value = tl.fma(-sums[0], dot(precisions, z, j * D), value)
        else:
            for i in tl.static_range(D):
                value = tl.fma(-sums[2 + 2 * D + triangle(i, j, D)], z[i], value)
        if not RESIDENT:
            value = tl.fma(-sums[1 + j], along, value)
        values += (value,)
    return values
