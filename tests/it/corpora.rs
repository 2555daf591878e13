//! The fuzzers' corpora as ordinary tests, through the same functions.

use std::{
    collections::BTreeSet,
    fs, panic,
    path::{Path, PathBuf},
};

#[path = "../fuzz/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzzers use them as well")]
mod targets;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 5] = [
    ("frame_reader", targets::frame_reader),
    ("polling_payload", targets::polling_payload),
    ("redis_message", targets::redis_message),
    ("redis_reply", targets::redis_reply),
    ("ticket", targets::ticket),
];

/// More than this belongs in a fuzzer's own store.
const MOST_FILES: usize = 200;
const MOST_BYTES: usize = 64 * 1024;

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = package().join(directory);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs a target on a file; the name of the file when that fails.
fn failed(target: Target, file: &PathBuf) -> Option<PathBuf> {
    let data = fs::read(file).unwrap();
    panic::catch_unwind(|| target(&data)).is_err().then(|| file.clone())
}

#[test]
fn every_input_passes() {
    let failures = TARGETS.iter().flat_map(|(name, target)| {
        let files = files(&format!("tests/fuzz/corpus/{name}"));
        assert!(files.len() > 5, "{name} has too few inputs");
        files.into_iter().filter_map(|file| failed(*target, &file))
    });
    assert_eq!(failures.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

/// What is recorded for other tests is input as well.
#[test]
fn fixtures_pass() {
    let directories = ["records", "notices", "users", "bad"];
    let files = directories.iter().flat_map(|directory| files(&format!("fixtures/redis/{directory}")));
    let failures = files.filter_map(|file| failed(targets::redis_message, &file));
    assert_eq!(failures.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

#[test]
fn every_fuzzer_has_its_corpus_and_its_place_here() {
    let names = |directory| {
        let files: Vec<PathBuf> = files(directory);
        files.iter().map(|file| file.file_stem().unwrap().to_string_lossy().into_owned()).collect::<BTreeSet<_>>()
    };
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("tests/fuzz/fuzz_targets"), known);
    assert_eq!(names("tests/fuzz/corpus"), known);
    let manifest = fs::read_to_string(package().join("tests/fuzz/Cargo.toml")).unwrap();
    assert!(known.iter().all(|name| manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\""))));
}

#[test]
fn corpora_stay_small() {
    let corpora = TARGETS.iter().flat_map(|(name, _)| files(&format!("tests/fuzz/corpus/{name}")));
    let sizes: Vec<usize> = corpora.map(|file| fs::read(file).unwrap().len()).collect();
    assert!(sizes.len() <= MOST_FILES && sizes.iter().all(|&size| size <= MOST_BYTES));
}

/// The checks above can fail.
#[test]
fn a_failing_target_is_noticed() {
    let file = package().join("Cargo.toml");
    assert_eq!(failed(|data| assert!(data.is_empty(), "on purpose"), &file), Some(file));
}
