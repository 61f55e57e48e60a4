//! Writes the XML of replies.

use std::fmt::Display;

/// Elements one after the other.
#[derive(Debug, Default)]
pub(crate) struct Xml(String);

impl Xml {
    pub(crate) fn text(&mut self, name: &str, value: impl Display) -> &mut Self {
        let mut escaped = String::new();
        for letter in value.to_string().chars() {
            match letter {
                '&' => escaped.push_str("&amp;"),
                '<' => escaped.push_str("&lt;"),
                '>' => escaped.push_str("&gt;"),
                '"' => escaped.push_str("&quot;"),
                '\r' => escaped.push_str("&#13;"),
                letter => escaped.push(letter),
            }
        }
        self.0.extend(["<", name, ">", &escaped, "</", name, ">"]);
        self
    }

    pub(crate) fn maybe(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    pub(crate) fn node(&mut self, name: &str, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.extend(["<", name, ">"]);
        inside(self);
        self.0.extend(["</", name.split(' ').next().unwrap_or(name), ">"]);
        self
    }

    /// EC2's lists.
    pub(crate) fn items<T>(
        &mut self,
        name: &str,
        of: impl IntoIterator<Item = T>,
        each: impl Fn(&mut Self, T),
    ) -> &mut Self {
        self.list(name, "item", of, each)
    }

    /// The lists of the Query protocol.
    pub(crate) fn members<T>(
        &mut self,
        name: &str,
        of: impl IntoIterator<Item = T>,
        each: impl Fn(&mut Self, T),
    ) -> &mut Self {
        self.list(name, "member", of, each)
    }

    fn list<T>(
        &mut self,
        name: &str,
        item: &str,
        of: impl IntoIterator<Item = T>,
        each: impl Fn(&mut Self, T),
    ) -> &mut Self {
        self.node(name, |xml| {
            for value in of {
                xml.node(item, |xml| each(xml, value));
            }
        })
    }

    /// The text of the element that is open: for lists of plain values.
    pub(crate) fn value(&mut self, value: impl Display) {
        let mut inner = Self::default();
        inner.text("v", value);
        self.0.push_str(&inner.0["<v>".len()..inner.0.len() - "</v>".len()]);
    }

    pub(crate) fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    pub(crate) fn document(self) -> String {
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_attributes_are_not_repeated_at_the_end() {
        let mut xml = Xml::default();
        xml.node("a b=\"c\"", |xml| {
            xml.text("d", "<&>").items("list", ["x&"], super::Xml::value);
        });
        assert_eq!(xml.0, "<a b=\"c\"><d>&lt;&amp;&gt;</d><list><item>x&amp;</item></list></a>");
    }
}
