//! The log through its public door: ship, crash, come back, restore.

mod crash;
mod faulty;
mod race;
mod rewind;
mod ship;
mod world;
