//! `kiln fmt`: one layout for template files. Comments stay with what they stand beside.
//!
//! Sections come in the order of the reference; `[[provision]]` and `[[check]]` keep theirs. One blank line before every
//! section, none of several, no indentation, ` = ` around values, `[a, b]` and `{ a = 1 }` inside. A list that is broken
//! over lines has one item a line. Nothing changes its meaning.

use toml_edit::{Array, Decor, DocumentMut, InlineTable, Item, RawString, Table, Value};

use crate::{
    Diagnostic, Diagnostics,
    keys::TEMPLATE,
    node::{At, Report},
    template::LARGEST_TEMPLATE,
};

const INDENT: &str = "  ";

/// The text in the standard layout; `name` is the file name for messages. Formatting it again changes nothing.
///
/// Fails on text that is not TOML.
pub fn format(name: &str, text: &str) -> Result<String, Diagnostics> {
    let mut report = Report::default();
    if text.len() > LARGEST_TEMPLATE {
        report.found.push(Diagnostic::new(format!("`{name}` is larger than {} KiB", LARGEST_TEMPLATE >> 10)));
        return Err(report.found);
    }
    let file = report.add_file(name, text);
    report.parse(file);
    if !report.found.is_empty() {
        return Err(report.found);
    }
    let (heading, body) = split_heading(text);
    let formatted = body.parse::<DocumentMut>().map(|document| lay_out(document, &heading)).map_err(|error| {
        report.error(At { file, start: 0, end: 0 }, error.message());
    });
    match formatted {
        Ok(formatted) if same(text, &formatted) => Ok(formatted),
        Ok(_) => {
            report.found.push(
                Diagnostic::new(format!("`{name}` cannot be formatted without changing its meaning"))
                    .with_help("this is a mistake in kiln; the file was left as it is"),
            );
            Err(report.found)
        }
        Err(()) => Err(report.found),
    }
}

fn same(before: &str, after: &str) -> bool {
    match (before.parse::<toml::Table>(), after.parse::<toml::Table>()) {
        (Ok(before), Ok(after)) => before == after,
        _ => false,
    }
}

fn lay_out(mut document: DocumentMut, heading: &[String]) -> String {
    order(document.as_table_mut());
    table(document.as_table_mut(), &mut true);
    let trailing = comments(document.trailing().as_str().unwrap_or_default());
    document.set_trailing("");
    let body = document.to_string();
    let trailing: Vec<&str> = trailing.iter().map(String::as_str).skip_while(|line| line.is_empty()).collect();
    let parts = [heading.join("\n"), body.trim_matches('\n').to_owned(), trailing.join("\n").trim_end().to_owned()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { parts.join("\n\n") + "\n" }
}

/// The comment lines that open the file and are followed by a blank line, and the text after them. They stay at the
/// top, whatever section comes to stand first.
fn split_heading(text: &str) -> (Vec<String>, &str) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut heading = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with('#') {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        heading.push(line.trim_end().to_owned());
        rest = after.trim_start_matches([' ', '\t', '\r']);
    }
    if rest.is_empty() || rest.starts_with('\n') { (heading, rest) } else { (Vec::new(), text) }
}

/// Gives every table its place: the order of the reference, and below that the order of the file.
fn order(root: &mut Table) {
    let rank = |name: &str| TEMPLATE.iter().position(|key| key.name == name).unwrap_or(TEMPLATE.len());
    let mut names: Vec<(usize, isize, String)> =
        root.iter().map(|(name, item)| (rank(name), position(item), name.to_owned())).collect();
    names.sort();
    let mut next = 0;
    for (_, _, name) in names {
        if let Some(item) = root.get_mut(&name) {
            place(item, &mut next);
        }
    }
}

/// Where the first header of an item stands in the file.
fn position(item: &Item) -> isize {
    match item {
        Item::Table(table) => table
            .position()
            .filter(|_| !table.is_implicit())
            .or_else(|| table.iter().map(|(_, item)| position(item)).min())
            .unwrap_or(isize::MAX),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(Table::position).min().unwrap_or(isize::MAX),
        _ => isize::MAX,
    }
}

fn place(item: &mut Item, next: &mut isize) {
    let place_table = |table: &mut Table, next: &mut isize| {
        table.set_position(Some(*next));
        *next += 1;
        let mut names: Vec<(isize, String)> =
            table.iter().map(|(name, item)| (position(item), name.to_owned())).collect();
        names.sort();
        for (_, name) in names {
            if let Some(item) = table.get_mut(&name) {
                place(item, next);
            }
        }
    };
    match item {
        Item::Table(table) => place_table(table, next),
        Item::ArrayOfTables(tables) => tables.iter_mut().for_each(|table| place_table(table, next)),
        _ => {}
    }
}

/// Lays out the keys of a table and all tables below it. `first` is set until a key of it was written: no blank line
/// stands before that.
fn table(table: &mut Table, first: &mut bool) {
    for (mut key, item) in table.iter_mut() {
        let dotted = matches!(item, Item::Table(table) if table.is_dotted());
        match item {
            Item::Value(value) => {
                let before = lead(key.leaf_decor(), *first);
                key.leaf_decor_mut().set_prefix(before);
                key.leaf_decor_mut().set_suffix(" ");
                key.dotted_decor_mut().clear();
                let suffix = comment_after(value.decor());
                self::value(value, 0);
                value.decor_mut().set_prefix(" ");
                value.decor_mut().set_suffix(suffix);
                *first = false;
            }
            Item::Table(inner) if dotted => {
                let before = lead(key.leaf_decor(), *first);
                key.leaf_decor_mut().set_prefix(before);
                key.leaf_decor_mut().set_suffix("");
                key.dotted_decor_mut().clear();
                self::table(inner, first);
            }
            Item::Table(inner) => {
                key.leaf_decor_mut().clear();
                key.dotted_decor_mut().clear();
                header(inner);
                self::table(inner, &mut true);
            }
            Item::ArrayOfTables(tables) => {
                key.leaf_decor_mut().clear();
                key.dotted_decor_mut().clear();
                for inner in tables.iter_mut() {
                    header(inner);
                    self::table(inner, &mut true);
                }
            }
            Item::None => {}
        }
    }
}

fn header(table: &mut Table) {
    let mut lines = comments(text(table.decor().prefix()));
    lines.splice(..lines.iter().take_while(|line| line.is_empty()).count(), []);
    let prefix = lines.iter().fold("\n".to_owned(), |prefix, line| prefix + line + "\n");
    let suffix = comment_of(text(table.decor().suffix()));
    table.decor_mut().set_prefix(prefix);
    table.decor_mut().set_suffix(suffix);
}

/// What stands before a key: its comments, and one blank line where there was one.
fn lead(decor: &Decor, first: bool) -> String {
    let lines = comments(text(decor.prefix()));
    let lines = lines.iter().skip_while(|line| first && line.is_empty());
    lines.fold(String::new(), |prefix, line| prefix + line + "\n")
}

fn text(raw: Option<&RawString>) -> &str {
    raw.and_then(RawString::as_str).unwrap_or_default()
}

/// The comment lines of white space, with at most one empty line between any two and before the first.
fn comments(space: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut parts = space.split('\n').map(str::trim).collect::<Vec<_>>();
    // What follows the last line break is the indentation of what comes next.
    if parts.last().is_some_and(|last| last.is_empty()) {
        parts.pop();
    }
    for part in parts {
        if !part.is_empty() || lines.last().is_none_or(|last| !last.is_empty()) {
            lines.push(part.to_owned());
        }
    }
    lines
}

fn comment_after(decor: &Decor) -> String {
    comment_of(text(decor.suffix()))
}

fn comment_of(space: &str) -> String {
    let comment = space.trim();
    if comment.is_empty() { String::new() } else { format!(" {comment}") }
}

fn value(value: &mut Value, depth: usize) {
    match value {
        Value::Array(array) => self::array(array, depth),
        Value::InlineTable(table) => inline_table(table, depth),
        _ => {}
    }
}

fn array(array: &mut Array, depth: usize) {
    let broken = array.iter().any(|item| has(item.decor(), '\n')) || text(Some(array.trailing())).contains('\n');
    let odd = array.iter().any(|item| text(item.decor().suffix()).contains('#'));
    array.iter_mut().for_each(|item| value(item, depth + usize::from(broken)));
    if odd {
        return;
    }
    if !broken {
        for (index, item) in array.iter_mut().enumerate() {
            *item.decor_mut() = Decor::new(if index == 0 { "" } else { " " }, "");
        }
        array.set_trailing("");
        array.set_trailing_comma(false);
        return;
    }
    let indent = INDENT.repeat(depth + 1);
    for item in array.iter_mut() {
        let prefix = broken_prefix(text(item.decor().prefix()), &indent);
        *item.decor_mut() = Decor::new(prefix + &indent, "");
    }
    let trailing = broken_prefix(text(Some(array.trailing())), &indent);
    array.set_trailing(trailing + &INDENT.repeat(depth));
    array.set_trailing_comma(!array.is_empty());
}

/// Comments between two items: what stands on the line of the one before, then lines of their own, then a line break.
fn broken_prefix(space: &str, indent: &str) -> String {
    let mut lines = space.split('\n').map(str::trim);
    let mut prefix = comment_of(lines.next().unwrap_or_default());
    for line in lines.filter(|line| !line.is_empty()) {
        prefix.push('\n');
        prefix.push_str(indent);
        prefix.push_str(line);
    }
    prefix.push('\n');
    prefix
}

fn has(decor: &Decor, c: char) -> bool {
    text(decor.prefix()).contains(c) || text(decor.suffix()).contains(c)
}

fn inline_table(table: &mut InlineTable, depth: usize) {
    let written = table.to_string();
    // A table that is broken over lines, or holds comments, is as its author wants it.
    let broken = table.iter().any(|(_, value)| has(value.decor(), '\n')) || table_space(table).contains(['\n', '#']);
    table.iter_mut().for_each(|(_, value)| self::value(value, depth));
    if broken || written.contains('#') && table.iter().any(|(_, value)| has(value.decor(), '#')) {
        return;
    }
    let count = table.len();
    for (index, (mut key, value)) in table.iter_mut().enumerate() {
        key.leaf_decor_mut().set_prefix(" ");
        key.leaf_decor_mut().set_suffix(" ");
        *value.decor_mut() = Decor::new(" ", if index + 1 == count { " " } else { "" });
    }
    table.set_trailing("");
    table.set_trailing_comma(false);
}

fn table_space(table: &InlineTable) -> String {
    let keys = table.iter().filter_map(|(name, _)| table.key(name));
    let decors = keys.flat_map(|key| [key.leaf_decor(), key.dotted_decor()]);
    decors.flat_map(|decor| [text(decor.prefix()), text(decor.suffix())]).collect::<String>()
        + text(Some(table.trailing()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sections_come_in_the_order_of_the_reference_and_keep_their_comments() {
        let text = "# what this is\n#:schema x\n\n\n[[provision]] # one\nuse='shell'\n  script = 'x'   # why\n\n\n\n# the base\n[base.debian]\nsuite=\"bookworm\"\npackages=['a',\n'b', # needed\n# and\n'c']\n[[provision]]\nuse = 'files'\nfiles=[{path='/a',content=\"#\"}]\n[image]\nname = 'a'\n# last\n";
        let expected = "# what this is\n#:schema x\n\n[image]\nname = 'a'\n\n# the base\n[base.debian]\nsuite = \"bookworm\"\npackages = [\n  'a',\n  'b', # needed\n  # and\n  'c',\n]\n\n[[provision]] # one\nuse = 'shell'\nscript = 'x' # why\n\n[[provision]]\nuse = 'files'\nfiles = [{ path = '/a', content = \"#\" }]\n\n# last\n";
        let formatted = format("t", text).unwrap();
        assert_eq!(formatted, expected);
    }

    #[test]
    fn refuses_what_is_not_toml_with_its_place() {
        let found = format("t", "a = 1\nb = = 2\n").unwrap_err();
        assert!(found.render().contains("t:2:"), "{found}");
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("\n".to_owned()),
            Just("# note\n".to_owned()),
            Just("  # indented\n\n\n".to_owned()),
            "[a-c]{1,2}( = |=)(1|true|'x'|\"\\{\\{ y \\}\\}\") *(# c)?\n",
            "[d-f]\\.[a-c] ?= ?1\n",
            "[g-i] = \\[( *1 *,)?( *\n? *2 *,)?( # c\n)?( *\n *3)?( *,)?( *\n)?\\]\n",
            "[j-l] = \\{( a *= *1)?(, b=\\[ 1,2\\])?\\}\n",
            "\\[(image|base\\.debian|builder\\.qemu|variables\\.[xy]|zz)\\] *(# c)?\n",
            "\\[\\[(provision|check|variables\\.z\\.validation)\\]\\]\n",
            Just("m = '''\n  text  \n# no comment\n'''\n".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn formatting_keeps_the_meaning_and_is_done_after_once(pieces in proptest::collection::vec(piece(), 0..12)) {
            let add = |text: String, piece: &String| {
                let more = text.clone() + piece;
                if more.parse::<toml::Table>().is_ok() { more } else { text }
            };
            let text = pieces.iter().fold(String::new(), add);
            let once = format("t", &text).map_err(|found| TestCaseError::fail(found.render()))?;
            prop_assert_eq!(once.matches("# ").count(), text.matches("# ").count(), "comments of {:?} -> {:?}", text, once);
            let twice = format("t", &once).map_err(|found| TestCaseError::fail(found.render()))?;
            prop_assert_eq!(&once, &twice, "from {:?}", text);
        }

        #[test]
        fn any_text_is_formatted_or_refused(text in "[\\PC\n]{0,60}") {
            let _ = format("t", &text);
        }
    }
}
