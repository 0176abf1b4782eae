"""Recursion of the target, and which records of a path are due: what the kernels of trajectories share.

With h_n = v_n H_n the target -H of `fastndsm.reference.simulate` needs no division until the end:

    h_{n+1} = c h_n + [(s_n^2 - c (1 - c) v_n) z - c v_n a_n Hess(x_n) z] / s_n,    v_{n+1} = s_n^2 + c^2 v_n

with c = 1 - a_n p and target = -h / v.
"""

from __future__ import annotations

import triton
import triton.language as tl

TWO_LN2 = tl.constexpr(1.3862943611198906)
HIGHEST = tl.constexpr(3.0e38)  # of all energies: the difference of infinite ones is NaN


@triton.jit
def target_step(h, v, p, hessian_z, u, z, a, s):
    """Return h and v after a step; hessian_z in units of u; v and p are 1 array for all dimensions, or one for each."""
    inverse = 1.0 / s
    h_next, v_next = (), ()
    for j in tl.static_range(len(h)):
        if j < len(v):
            q = a * p[j]
            c = 1.0 - q
            cv = c * v[j]
            own = tl.fma(-cv * q, inverse, s)
            push = cv * (a * inverse) * u
            v_next += (tl.fma(c, cv, s * s),)
        h_next += (tl.fma(-push, hessian_z[j], tl.fma(own, z[j], c * h[j])),)
    return h_next, v_next


@triton.jit
def due_at(n, steps_ptr, row, n_records, cursor, count, inside):
    """Return the rows whose record number `cursor`, of the first `count`, is taken after n steps."""
    waits = inside & (cursor < count)
    return waits & (tl.load(steps_ptr + row * n_records + cursor, mask=waits, other=0) == n)


@triton.jit
def record_row(records_ptr, row, n_records, cursor, mask):
    """Return the row of the outputs that record number `cursor` of each path belongs in."""
    first = row * n_records
    return first + tl.load(records_ptr + first + cursor, mask=mask, other=0)


@triton.jit
def target_of(h, v):
    """Return the target -h / v, or 0 where no step was taken."""
    target = ()
    for j in tl.static_range(len(h)):
        variance = v[j if len(v) > 1 else 0]
        target += (tl.where(variance > 0.0, -h[j] / tl.where(variance > 0.0, variance, 1.0), 0.0),)
    return target
