//! Draws the processes of a command that was killed.

use std::{collections::BTreeMap, fmt::Write as _};

/// From lines `<pid> <parent> <arguments>` to an indented text, children beneath their parents; empty for no processes.
pub(super) fn draw(lines: &str) -> String {
    let mut processes = BTreeMap::new();
    for line in lines.lines() {
        let mut words = line.splitn(3, ' ');
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
        if let (Some(pid), Some(parent)) = (number(), number()) {
            let arguments: String = words.next().unwrap_or_default().trim().chars().take(200).collect();
            processes.insert(pid, (parent, arguments));
        }
    }
    let mut text = String::new();
    let roots = processes.iter().filter(|(_, (parent, _))| !processes.contains_key(parent));
    for (pid, _) in roots {
        branch(&processes, *pid, 1, &mut text);
    }
    text
}

fn branch(processes: &BTreeMap<u32, (u32, String)>, pid: u32, depth: usize, text: &mut String) {
    // Numbers are read at different moments, so a circle is not impossible.
    if depth > 32 {
        return;
    }
    if let Some((_, arguments)) = processes.get(&pid) {
        let _ = write!(text, "\n{}{pid} {arguments}", "  ".repeat(depth));
    }
    for (child, _) in processes.iter().filter(|(child, (parent, _))| *parent == pid && **child != pid) {
        branch(processes, *child, depth + 1, text);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn children_stand_beneath_their_parents() {
        let lines = "10 1 sh /run/kiln/x.sh \n12 11 sleep 5 \n11 10 make -j2 \nbroken\n";
        assert_eq!(super::draw(lines), "\n  10 sh /run/kiln/x.sh\n    11 make -j2\n      12 sleep 5");
        assert_eq!(super::draw(""), "");
    }
}
