//! What a reviewer should not have to look for: layers, sizes, module docs, words that do not belong.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use walkdir::WalkDir;

/// The layer of each crate, as in ARCHITECTURE.md.
const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("api", 1),
    ("guest", 1),
    ("replica", 1),
    ("volume", 1),
    ("runtime", 2),
    ("puck", 3),
    ("puck-cli", 3),
    ("puck-guest", 3),
    ("tidy", 3),
];

/// Imports inside one layer that are allowed, with the reason in ARCHITECTURE.md.
const SIDEWAYS: &[(&str, &str)] = &[("puck", "puck-cli")];

/// The most lines of a source file, without its tests.
const FILE_LINES_MAX: usize = 1000;

/// Words that never stand in the tree, with what to do instead. Split so that this file does not hold them.
const BANNED: &[(&str, &str)] = &[
    (concat!("to", "do!("), "finish it"),
    (concat!("#[", "allow("), "use #[expect(lint, reason = \"...\")]"),
    (concat!("#[", "ignore"), "a test runs or does not exist"),
    (concat!("FIX", "ME"), "fix it"),
];

#[test]
fn imports_point_down() {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, layer) in LAYERS {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml"))
            .expect("a manifest");
        let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
        let Some(dependencies) = manifest.get("dependencies").and_then(|d| d.as_table()) else {
            continue;
        };
        for dependency in dependencies.keys() {
            let Some(below) = layers.get(dependency.as_str()) else { continue };
            let sideways = below == layer && SIDEWAYS.contains(&(name, dependency));
            if below >= layer && !sideways {
                wrong.push(format!("{name} (layer {layer}) imports {dependency} (layer {below})"));
            }
        }
    }
    assert!(wrong.is_empty(), "see ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_crate_has_a_layer() {
    for entry in fs::read_dir(root().join("crates")).expect("crates") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        assert!(
            LAYERS.iter().any(|(known, _)| *known == name),
            "give {name} a layer here and in ARCHITECTURE.md"
        );
    }
}

#[test]
fn files_end_early_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        let is_test =
            path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        if lines > FILE_LINES_MAX && !is_test {
            wrong.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", path.display()));
        }
        if !text.starts_with("//!") && !is_test {
            wrong.push(format!("{}: starts without module docs", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn banned_words_are_absent() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for (word, instead) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
                wrong.push(format!("{}:{}: {word}: {instead}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the workspace is two above")
        .to_owned()
}

fn sources() -> Vec<(PathBuf, String)> {
    WalkDir::new(root().join("crates"))
        .into_iter()
        .map(|entry| entry.expect("a readable tree").into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("UTF-8 source");
            (path, text)
        })
        .collect()
}
