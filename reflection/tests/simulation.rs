//! Random histories of both halves together: users create, change and delete; the link breaks; either side is
//! restarted; watches lag, break and are read anew; requests fail before or after they took effect; the provider's
//! owner deletes things. After each stretch everything is left to calm down, and must agree.
//!
//! `LIQUID_SIM_STEPS` sets the number of steps, `LIQUID_SIM_SEED` runs one history.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says how much it did")]

mod world;

use world::World;

/// Steps of one history: long enough for several restarts and name reuses, short enough to read when it fails.
const HISTORY: u64 = 2_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn both_halves_agree_after_any_history() {
    let one = setting("LIQUID_SIM_SEED", 0);
    let steps = setting("LIQUID_SIM_STEPS", 2_000_000);
    let seeds = if one > 0 { one..one + 1 } else { 1..steps / HISTORY + 1 };
    let mut totals = world::Counts::default();
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..HISTORY {
            world.random_step();
            if world.chance(1, 250) {
                world.calm_down();
            }
        }
        world.calm_down();
        world.leave();
        totals.add(&world.counts);
    }
    println!("{totals:?}");
    // A simulation in which nothing interesting happens proves nothing.
    if one == 0 {
        assert!(totals.every_kind_happened(), "{totals:?}");
    }
}
