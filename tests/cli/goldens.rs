//! Expected texts in files.

use std::{env, fs};

use kiln_tests::home::{Home, Ran, repository};

/// Fails when the file at `path` does not hold `text`; writes it when goldens are updated.
pub(crate) fn compare(path: &str, text: &str) {
    let file = repository().join(path);
    if env::var_os("KILN_UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        expected == text,
        "{path} differs; `KILN_UPDATE_GOLDENS=1` writes it anew\n--- expected\n{expected}\n--- now\n{text}"
    );
}

/// A run as text: readable, and the same on every machine.
pub(crate) fn text_of(ran: &Ran, home: &Home) -> String {
    let text = format!(
        "$ kiln {}\n--- exit code {}\n--- stdout\n{}--- stderr\n{}",
        ran.arguments.join(" "),
        ran.code.map_or_else(|| "none".to_owned(), |code| code.to_string()),
        ran.stdout,
        ran.stderr
    );
    text.replace(home.path("").to_string_lossy().trim_end_matches('/'), "<home>")
}
