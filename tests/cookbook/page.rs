//! The page shows each program, and each program is short.

use std::path::Path;

fn recipes() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cookbook");
    let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    files.map(read).collect()
}

#[test]
fn page_includes_every_recipe_and_a_test_runs_it() {
    let page = include_str!("../../src/guide/cookbook.rs");
    let tests = include_str!("main.rs");
    let recipes = recipes();
    assert_eq!(page.matches("include_str!").count(), recipes.len());
    for (name, _) in recipes {
        let shown = format!("include_str!(\"../../examples/cookbook/{name}\")");
        assert!(page.contains(&shown), "expected {name} on the page");
        let module = name.split('.').next().unwrap();
        assert!(tests.contains(&format!("mod {module};")), "expected a test of {name}");
    }
}

#[test]
fn recipes_have_at_most_40_lines_after_their_imports() {
    for (name, text) in recipes() {
        let lines: Vec<&str> = text.lines().collect();
        let is_import = |line: &&str| line.starts_with("use ") || *line == "};";
        let imports = lines.iter().rposition(is_import).map_or(0, |last| last + 2);
        let length = lines.len() - imports;
        assert!(length <= 40, "{name} has {length} lines");
        let longest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert!(longest <= 100, "{name} has a line of {longest} characters");
    }
}
