//! Checks of the tree itself, as tests: `cargo test -p tidy`.
