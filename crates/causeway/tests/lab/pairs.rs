//! Which combinations of options are run: all of them, or a selection in which every pair of values
//! of two options occurs that occurs in any.

use std::collections::BTreeSet;

/// The rows of a selection that covers all pairs, from all rows. Greedy, and always the same: takes
/// the row with the most pairs that are not covered yet.
pub(crate) fn covering<const N: usize>(all: &[[usize; N]]) -> Vec<[usize; N]> {
    let mut open: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut chosen = Vec::new();
    while !open.is_empty() {
        let gain = |row: &&[usize; N]| pairs(row).filter(|p| open.contains(p)).count();
        let best = *all.iter().rev().max_by_key(gain).expect("open pairs come from rows");
        for pair in pairs(&best) {
            open.remove(&pair);
        }
        chosen.push(best);
    }
    chosen
}

/// All pairs of (option, value) in a row.
fn pairs<const N: usize>(row: &[usize; N]) -> impl Iterator<Item = [(usize, usize); 2]> + use<N> {
    let row = *row;
    (0..N).flat_map(move |i| (i + 1..N).map(move |j| [(i, row[i]), (j, row[j])]))
}

#[test]
fn every_pair_is_covered() {
    let mut all = Vec::new();
    for a in 0..3 {
        for b in 0..5 {
            for c in 0..3 {
                // A combination that does not exist.
                if (a, b) != (0, 0) {
                    all.push([a, b, c]);
                }
            }
        }
    }
    let chosen = covering(&all);
    let want: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let have: BTreeSet<_> = chosen.iter().flat_map(pairs).collect();
    assert_eq!(want, have);
    assert!(chosen.len() < all.len() / 2, "{} of {}", chosen.len(), all.len());
}
