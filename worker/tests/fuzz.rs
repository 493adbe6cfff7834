//! Replays the fuzzers' seeds: what once was odd enough to keep is read again by every `cargo test`.
#![allow(clippy::indexing_slicing)]

#[path = "../../fuzz/inputs.rs"]
mod inputs;

use std::path::Path;

fn replay(kind: &str, read: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(kind);
    let seeds: Vec<_> = std::fs::read_dir(&folder).expect("the seeds").collect();
    assert!(seeds.len() > 2, "{} has hardly any seeds", folder.display());
    for seed in seeds {
        let path = seed.expect("a seed").path();
        let bytes = std::fs::read(&path).expect("read a seed");
        // Cut short and with bytes changed, too: what a transfer may do.
        for end in [bytes.len(), bytes.len() / 2, bytes.len().saturating_sub(1)] {
            read(&bytes[..end]);
        }
        for at in (0..bytes.len()).step_by(bytes.len() / 64 + 1) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            read(&damaged);
        }
    }
}

#[test]
fn no_model_makes_the_loader_or_a_pass_panic() {
    replay("model", inputs::model);
}

#[test]
fn no_archive_makes_the_reader_panic() {
    replay("npz", inputs::npz);
}

#[test]
fn no_recipe_makes_the_parser_panic() {
    replay("recipe", inputs::recipe);
}
