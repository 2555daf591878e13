//! The README says of the settings what the program says.

use std::{fs, path::Path};

use loomio_channels::config::{VARIABLES, Variable};

#[test]
fn the_table_of_settings_is_the_programs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(path).unwrap().replace("\r\n", "\n");
    let rows =
        VARIABLES.iter().map(|Variable { name, default, help, .. }| format!("| `{name}` | {default} | {help} |\n"));
    let table = format!("| variable | default | meaning |\n|---|---|---|\n{}", rows.collect::<String>());
    assert!(readme.contains(&table), "put this into README.md:\n\n{table}");
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect::<Vec<_>>();
    let variables = rows(&table);
    let names = variables.iter().map(|row| row.split('`').nth(1).unwrap());
    for name in names {
        let first = format!("| `{name}` |");
        assert_eq!(rows(&readme).iter().filter(|row| row.starts_with(&first)).count(), 1, "{name} is explained twice");
    }
}
