//! Long random walks over the leases on disk, beside a model of who lives: no address is anybody
//! else's while its pod lives, and nothing stays for good of those that are dead.
//!
//! Calls of plugins that come to their end, that are killed before any one of their changes of the
//! disk, and whose disk refuses one; runtimes that call again, call twice and collect; the reference
//! plugin on the same files; reboots, with and without a loss of power.
//!
//! `CAUSEWAY_SEED` repeats a walk, `CAUSEWAY_STEPS` makes it longer.

mod events;
mod look;
mod model;
mod rng;

use model::Model;
use rng::Rng;

/// A variable of the environment as a number.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|e| panic!("{name}={n}: {e}")))
}

/// Says how to come back when a walk ends early.
struct Trace {
    seed: u64,
    step: u64,
    call: String,
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("step {}: {}; CAUSEWAY_SEED={}", self.step, self.call, self.seed);
        }
    }
}

/// The three together make a million calls in the whole matrix of tests, else a quarter of that.
fn walk(subnets: &[&str], steps: u64) {
    let seed = number("CAUSEWAY_SEED").unwrap_or_else(rng::any_seed);
    let full = std::env::var_os("CAUSEWAY_MATRIX").is_some_and(|value| value == "full");
    let steps = number("CAUSEWAY_STEPS").unwrap_or(if full { steps } else { steps / 4 });
    let mut trace = Trace { seed, step: 0, call: String::new() };
    let mut model = Model::new(Rng::new(seed), subnets);
    for step in 0..steps {
        trace.step = step;
        model.step(&mut trace.call);
    }
    model.recover(&mut trace.call);
    let counts = &model.counts;
    println!("{subnets:?}: {steps} calls, {counts:?}, seed {seed}");
    if steps >= 10_000 {
        // A walk that never came to these places would show nothing.
        let least = steps / 1000;
        for (what, n) in counts.each() {
            assert!(n >= least.min(200), "{what}: only {n} times in {steps} calls");
        }
    }
}

#[test]
fn ipv4() {
    walk(&["10.1.2.0/29"], 400_000);
}

#[test]
fn ipv6() {
    walk(&["fd00:1:2::/125"], 400_000);
}

#[test]
fn dual_stack() {
    walk(&["10.1.2.0/29", "fd00:1:2::/125"], 200_000);
}
