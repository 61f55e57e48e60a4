//! What every Describe has: ids, filters, pages.

use crate::{form::Form, refusal::Refusal, world::Tags};

/// `Filter.N.Name` and `Filter.N.Value.M`: all filters must admit a thing, one value of each is enough.
#[derive(Debug)]
pub(crate) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    /// Refuses a filter that the action does not have.
    pub(crate) fn of(form: &mut Form, known: &[&str]) -> Result<Self, Refusal> {
        let mut filters = Vec::new();
        for at in form.indexed("Filter") {
            let name = form.required(&format!("{at}.Name"))?;
            let values = form.list(&format!("{at}.Value"));
            let of_tags = name.starts_with("tag:") || name == "tag-key";
            if !of_tags && !known.contains(&name.as_str()) {
                return Err(Refusal::invalid(format!("The filter '{name}' is invalid")));
            }
            if values.is_empty() {
                return Err(Refusal::invalid(format!("The filter '{name}' has no value")));
            }
            filters.push((name, values));
        }
        Ok(Self(filters))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `field` says what a thing has under the name of a filter.
    pub(crate) fn admit(&self, tags: &Tags, field: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let has = match name.strip_prefix("tag:") {
                Some(key) => tags.get(key).cloned().into_iter().collect(),
                None if name == "tag-key" => tags.keys().cloned().collect(),
                None => field(name),
            };
            has.iter().any(|value| wanted.iter().any(|pattern| matches(pattern, value)))
        })
    }
}

/// `*` stands for any letters, `?` for one.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(letter) if *letter == '?' || *letter == text[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                None => return false,
                Some((star_at, star_from)) => {
                    star = Some((star_at, star_from + 1));
                    at = star_at + 1;
                    from = star_from + 1;
                }
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

/// `MaxResults` and `NextToken`.
#[derive(Debug)]
pub(crate) struct Page {
    from: usize,
    most: usize,
}

impl Page {
    /// `with_ids` says whether the caller named what it wants, which excludes pages; `at_most` is the pace's limit.
    pub(crate) fn of(form: &mut Form, with_ids: bool, at_most: usize) -> Result<Self, Refusal> {
        let most: Option<usize> = form.number("MaxResults")?;
        let token = form.text("NextToken").filter(|token| !token.is_empty());
        if with_ids && most.is_some() {
            let message = "The parameter maxResults cannot be used with the parameter of ids";
            return Err(Refusal::client("InvalidParameterCombination", message));
        }
        let from = match token {
            None => 0,
            Some(token) => token
                .strip_prefix("page-")
                .and_then(|from| from.parse().ok())
                .ok_or_else(|| Refusal::client("InvalidNextToken", format!("The token '{token}' is invalid")))?,
        };
        if most == Some(0) || most.is_some_and(|most| most > 1000) {
            return Err(Refusal::invalid("MaxResults is out of range"));
        }
        let most = most.unwrap_or(usize::MAX);
        // Nobody is given pages who did not begin with one, or named what it wants.
        let limited = if at_most == 0 || with_ids { most } else { most.min(at_most) };
        Ok(Self { from, most: limited })
    }

    /// The page, and the token of the next one.
    pub(crate) fn cut<T>(&self, all: Vec<T>) -> (Vec<T>, Option<String>) {
        let end = self.from.saturating_add(self.most);
        let next = (end < all.len()).then(|| format!("page-{end}"));
        (all.into_iter().skip(self.from).take(self.most).collect(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_those_of_filters() {
        for (pattern, text, wanted) in [
            ("debian-12-*", "debian-12-amd64", true),
            ("*amd64*", "debian-12-amd64-2", true),
            ("a*b*c", "aXbYbZc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("abc", "abcd", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
        }
    }
}
