//! The smallest program that still fails.

use super::program::{Program, Step};

/// Runs that shrinking may cost.
const MOST_RUNS: usize = 1_500;

/// Tries to do with less as long as `fails` says that it still fails.
pub fn shrink(program: &Program, fails: impl Fn(&Program) -> bool) -> Program {
    let mut best = program.clone();
    let mut runs = 0;
    let mut try_it = |candidate: Program, best: &mut Program| {
        runs += 1;
        if runs > MOST_RUNS || !fails(&candidate) {
            return false;
        }
        *best = candidate;
        true
    };
    loop {
        let before = best.clone();
        let mut size = best.steps.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < best.steps.len() {
                let mut candidate = best.clone();
                let end = (at + size).min(candidate.steps.len());
                candidate.steps.drain(at..end);
                if !try_it(candidate, &mut best) {
                    at += size;
                }
            }
            size /= 2;
        }
        for at in 0..best.steps.len() {
            for step in simpler(&best.steps[at]) {
                let mut candidate = best.clone();
                candidate.steps[at] = step;
                try_it(candidate, &mut best);
            }
        }
        if best == before {
            return best;
        }
    }
}

/// Steps that do less.
fn simpler(step: &Step) -> Vec<Step> {
    let block = 4096;
    match *step {
        Step::Write { m, h, at, len } => {
            let mut found = vec![Step::Write { m, h: 0, at, len }];
            found.extend([10, 4096].map(|len| Step::Write { m, h, at, len }));
            found.extend([0, at / block * block].map(|at| Step::Write { m, h, at, len }));
            found.retain(|other| other != step);
            found
        }
        Step::Append { m, h, len } if len != 10 => vec![Step::Append { m, h, len: 10 }],
        Step::Read { m, h, len, .. } => {
            let simple = Step::Read { m, h, at: 0, len };
            if simple == *step { Vec::new() } else { vec![simple] }
        }
        Step::SetLength { m, h, len } if len != 0 => vec![
            Step::SetLength { m, h, len: 0 },
            Step::SetLength {
                m,
                h,
                len: len / block * block,
            },
        ],
        Step::Wait { ms } if ms > 3 => vec![Step::Wait { ms: 3 }, Step::Wait { ms: 1_000 }],
        Step::Together(ref one, ref other) => vec![(**one).clone(), (**other).clone()],
        Step::Fsync { m, h, data_only: true } => vec![Step::Fsync { m, h, data_only: false }],
        _ => Vec::new(),
    }
}
