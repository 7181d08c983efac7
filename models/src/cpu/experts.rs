//! A mixture of experts: which expert computes which row, and the computation expert by expert.
//!
//! Each expert multiplies all the rows of a step that go to it at once. A row's sum takes its experts in ascending order,
//! so neither the batch nor the cut of a prefill shows in a result. Used by `forward`.

use tokenmill_kernels::activation::gated_row;
use tokenmill_kernels::activations::Activations;
use tokenmill_kernels::aligned::AlignedVec;
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::matmul::{PackedMatrix, Place, Store, matmul};
use tokenmill_kernels::pool::Pool;

use super::arena::{ArenaSize, activation_bytes, f32_rows};
use super::weights::GatedMlp;
use crate::spec::{ExpertSpec, Gate};

/// An expert that a token goes to.
#[derive(Clone, Copy)]
struct Choice {
    expert: u32,
    /// The router's logit, then the share.
    share: f32,
}

/// Buffers of layers with experts.
pub(super) struct ExpertArena {
    spec: ExpertSpec,
    /// `[max_tokens, num_experts]`
    logits: AlignedVec<f32>,
    /// `[max_tokens, num_active]`, each token's experts, the best first.
    choices: Vec<Choice>,
    /// `[num_experts + 1]`, where each expert's rows begin.
    starts: Vec<usize>,
    /// `[max_tokens * num_active]`, the row and the share of each choice, grouped by expert, ascending.
    rows: Vec<(u32, f32)>,
    /// Rows of one expert, at most `MLP_TOKENS` at a time.
    input: Activations,
    /// `[MLP_TOKENS, 2 * ffn_dim]`
    gate_up: AlignedVec<f32>,
    /// `[MLP_TOKENS, ffn_dim]`
    mlp: Activations,
    /// `[MLP_TOKENS, hidden_dim]`
    output: AlignedVec<f32>,
}

/// What [`ExpertArena::run`] computes with.
#[derive(Clone, Copy)]
pub(super) struct Experts<'a> {
    pub(super) isa: Isa,
    pub(super) pool: &'a Pool,
    pub(super) gate: Gate,
    pub(super) router: &'a PackedMatrix,
    pub(super) experts: &'a [GatedMlp],
}

impl ExpertArena {
    pub(super) fn new(isa: Isa, size: ArenaSize<'_>, spec: ExpertSpec) -> Self {
        let (hidden, tokens) = (size.spec.hidden_dim, size.mlp_tokens());
        let max_tokens = size.geometry.max_batch_tokens as usize;
        Self {
            spec,
            logits: AlignedVec::zeroed(max_tokens * spec.num_experts),
            choices: Vec::with_capacity(max_tokens * spec.num_active),
            starts: vec![0; spec.num_experts + 1],
            rows: Vec::with_capacity(max_tokens * spec.num_active),
            input: Activations::new(isa, tokens, hidden, size.kinds.expert_input),
            gate_up: AlignedVec::zeroed(tokens * 2 * spec.ffn_dim),
            mlp: Activations::new(isa, tokens, spec.ffn_dim, size.kinds.expert_mlp),
            output: AlignedVec::zeroed(tokens * hidden),
        }
    }

    /// Bytes that [`ExpertArena::new`] takes, about.
    pub(super) fn size_bytes(size: &ArenaSize<'_>, spec: ExpertSpec) -> u64 {
        let (hidden, tokens) = (size.spec.hidden_dim, size.mlp_tokens() as u64);
        f32_rows(u64::from(size.geometry.max_batch_tokens), spec.num_experts + 4 * spec.num_active)
            + f32_rows(tokens, 2 * spec.ffn_dim + hidden)
            + activation_bytes(tokens, hidden, size.kinds.expert_input)
            + activation_bytes(tokens, spec.ffn_dim, size.kinds.expert_mlp)
    }

    /// Replaces each row of `out`, `[num_rows, hidden_dim]`, by what its experts make of the same row of `x`, which keeps
    /// its rows in f32.
    pub(super) fn run(&mut self, with: Experts<'_>, x: &Activations, out: &mut [f32]) {
        let num_rows = x.num_rows();
        let num_experts = self.spec.num_experts;
        let logits = &mut self.logits[..num_rows * num_experts];
        matmul(with.pool, with.router, x, logits, Place::rows_of(num_experts));
        self.choose(num_rows);
        self.group();
        out.fill(0.0);
        for (expert_idx, expert) in with.experts.iter().enumerate() {
            self.run_expert(with, (expert_idx, expert), x, out);
        }
    }

    fn run_expert(
        &mut self,
        with: Experts<'_>,
        (expert_idx, expert): (usize, &GatedMlp),
        x: &Activations,
        out: &mut [f32],
    ) {
        let Experts { isa, pool, gate, .. } = with;
        let Self { spec, starts, rows, input, gate_up, mlp, output, .. } = self;
        let (hidden, ffn) = (x.cols(), spec.ffn_dim);
        for rows in rows[starts[expert_idx]..starts[expert_idx + 1]].chunks(input.max_rows()) {
            input.fill(pool, rows.len(), |i, out| x.copy_row(rows[i].0 as usize, out));
            let gate_up = &mut gate_up[..rows.len() * 2 * ffn];
            expert.gate_up.apply(pool, input, gate_up, Store::Replace);
            mlp.fill(pool, rows.len(), |i, out| gated_row(isa, gate, &gate_up[i * 2 * ffn..][..2 * ffn], out));
            let output = &mut output[..rows.len() * hidden];
            expert.down.apply(pool, mlp, output, Store::Replace);
            for ((row, share), output) in rows.iter().zip(output.chunks_exact(hidden)) {
                for (out, x) in out[*row as usize * hidden..][..hidden].iter_mut().zip(output) {
                    *out += share * x;
                }
            }
        }
    }

    /// Picks each row's experts by their logits, the first of equals, and turns logits into shares of the softmax.
    fn choose(&mut self, num_rows: usize) {
        let ExpertSpec { num_experts, num_active, normalize, .. } = self.spec;
        self.choices.clear();
        for logits in self.logits[..num_rows * num_experts].chunks_exact(num_experts) {
            let first = self.choices.len();
            let all = (0_u32..).zip(logits).map(|(expert, logit)| Choice { expert, share: *logit });
            self.choices.extend(all.clone().take(num_active));
            let best = &mut self.choices[first..];
            best.sort_unstable_by(|a, b| b.share.total_cmp(&a.share).then(a.expert.cmp(&b.expert)));
            for choice in all.skip(num_active) {
                let place = best.iter().position(|kept| choice.share > kept.share);
                if let Some(place) = place {
                    best[place..].rotate_right(1);
                    best[place] = choice;
                }
            }
            let max = best[0].share;
            let sum = |chosen: &mut dyn Iterator<Item = f32>| chosen.map(|logit| (logit - max).exp()).sum::<f32>();
            let total =
                if normalize { sum(&mut best.iter().map(|kept| kept.share)) } else { sum(&mut logits.iter().copied()) };
            for choice in best {
                choice.share = (choice.share - max).exp() / total;
            }
        }
    }

    /// Sorts the choices by expert, each expert's rows ascending.
    fn group(&mut self) {
        let Self { spec, choices, starts, rows, .. } = self;
        starts.fill(0);
        for choice in &*choices {
            starts[choice.expert as usize + 1] += 1;
        }
        for expert_idx in 0..spec.num_experts {
            starts[expert_idx + 1] += starts[expert_idx];
        }
        rows.clear();
        rows.resize(choices.len(), (0, 0.0));
        for (row, choices) in (0_u32..).zip(choices.chunks_exact(spec.num_active)) {
            for choice in choices {
                let place = &mut starts[choice.expert as usize];
                rows[*place] = (row, choice.share);
                *place += 1;
            }
        }
        // Each start has moved to its expert's end, which is the next one's start.
        starts.rotate_right(1);
        starts[0] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(normalize: bool) -> ExpertArena {
        let kinds = tokenmill_kernels::activations::ActivationKinds { int8: false, f32: true };
        let spec = ExpertSpec { num_experts: 4, num_active: 2, ffn_dim: 8, normalize };
        ExpertArena {
            spec,
            logits: AlignedVec::zeroed(12),
            choices: Vec::new(),
            starts: vec![0; 5],
            rows: Vec::new(),
            input: Activations::new(Isa::best(), 1, 8, kinds),
            gate_up: AlignedVec::zeroed(16),
            mlp: Activations::new(Isa::best(), 1, 8, kinds),
            output: AlignedVec::zeroed(8),
        }
    }

    #[test]
    fn rows_go_to_their_best_experts_with_shares_of_the_softmax() {
        for normalize in [false, true] {
            let mut arena = arena(normalize);
            arena.logits.copy_from_slice(&[0.0, 2.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, 5.0]);
            arena.choose(3);
            arena.group();
            let of_expert = |idx: usize| &arena.rows[arena.starts[idx]..arena.starts[idx + 1]];
            let rows: Vec<Vec<u32>> = (0..4).map(|idx| of_expert(idx).iter().map(|(row, _)| *row).collect()).collect();
            assert_eq!(rows, [vec![1, 2], vec![0, 1], vec![], vec![0, 2]], "the first of equals");
            let exponents = [0.0_f32, 2.0, 1.0, 2.0].map(f32::exp);
            let total = if normalize { exponents[1] + exponents[3] } else { exponents.iter().sum() };
            assert!((of_expert(1)[0].1 - exponents[1] / total).abs() < 1e-6);
        }
    }

    #[test]
    fn logits_that_are_no_numbers_spoil_their_own_row() {
        let mut arena = arena(true);
        arena.logits.copy_from_slice(&[f32::NAN, 2.0, 1.0, f32::NAN, 3.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        arena.choose(3);
        arena.group();
        let bad: Vec<u32> = arena.rows.iter().filter(|(_, share)| share.is_nan()).map(|(row, _)| *row).collect();
        assert_eq!(bad, [0, 0]);
        assert_eq!(arena.rows.len(), 6);
    }
}
