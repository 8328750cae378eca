//! Names for sprites that were created without one.

use rand::{Rng, RngExt};

/// A name of two friendly words and a number, such as `quiet-otter-42`.
pub(crate) fn pick(rng: &mut impl Rng) -> String {
    let quality = QUALITIES[rng.random_range(0..QUALITIES.len())];
    let animal = ANIMALS[rng.random_range(0..ANIMALS.len())];
    format!("{quality}-{animal}-{}", rng.random_range(10..100))
}

const QUALITIES: [&str; 40] = [
    "amber", "brave", "bright", "brisk", "calm", "candid", "clever", "coral", "cosy", "deft",
    "eager", "fair", "fond", "gentle", "glad", "golden", "happy", "hardy", "honest", "jolly",
    "keen", "kind", "lively", "lucky", "mellow", "merry", "neat", "nimble", "noble", "patient",
    "plucky", "proud", "quick", "quiet", "silver", "sunny", "swift", "tidy", "warm", "witty",
];

const ANIMALS: [&str; 40] = [
    "badger", "beaver", "bison", "crane", "curlew", "dolphin", "eagle", "falcon", "ferret",
    "finch", "fox", "gecko", "hare", "hedgehog", "heron", "ibex", "kestrel", "koala", "lark",
    "lemur", "lynx", "marmot", "marten", "mole", "newt", "ocelot", "otter", "owl", "panda",
    "plover", "puffin", "rabbit", "raven", "robin", "seal", "stork", "swallow", "swan", "tapir",
    "wren",
];

#[cfg(test)]
mod tests {
    use super::{ANIMALS, QUALITIES};
    use api::name::SpriteName;

    #[test]
    fn every_combination_is_a_sprite_name() {
        for quality in QUALITIES {
            for animal in ANIMALS {
                assert!(format!("{quality}-{animal}-99").parse::<SpriteName>().is_ok());
            }
        }
    }
}
