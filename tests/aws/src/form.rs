//! The parameters of a Query request. Reading one takes it out; what nobody took is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use percent_encoding::percent_decode_str;

use crate::refusal::Refusal;

/// Keys and values that no handler has read yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Form(BTreeMap<String, String>);

impl Form {
    pub(crate) fn parse(body: &str) -> Result<Self, Refusal> {
        let mut fields = BTreeMap::new();
        for pair in body.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decoded(key)?, decoded(value)?);
            // AWS takes an empty value for none: Packer sends several.
            if value.is_empty() {
                continue;
            }
            if fields.insert(key.clone(), value).is_some() {
                return Err(Refusal::client("InvalidParameterCombination", format!("{key} is given twice")));
            }
        }
        Ok(Self(fields))
    }

    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<String, Refusal> {
        self.text(name).filter(|value| !value.is_empty()).ok_or_else(|| Refusal::missing(name))
    }

    pub(crate) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let number = value.parse();
        number.map(Some).map_err(|_| Refusal::invalid(format!("Invalid value '{value}' for {name}")))
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.text(name).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(value) => Err(Refusal::invalid(format!("Invalid value '{value}' for boolean {name}"))),
        }
    }

    /// One of the values that the service knows.
    pub(crate) fn choice(&mut self, name: &str, known: &[&str]) -> Result<Option<String>, Refusal> {
        match self.text(name) {
            Some(value) if !known.contains(&value.as_str()) => {
                Err(Refusal::invalid(format!("Value ({value}) for parameter {name} is invalid.")))
            }
            value => Ok(value),
        }
    }

    /// `Name.1`, `Name.2` ... in order.
    pub(crate) fn list(&mut self, name: &str) -> Vec<String> {
        self.indexed(name).into_iter().filter_map(|at| self.text(&at)).collect()
    }

    /// The prefixes `Name.1`, `Name.2` ... of a list of structures, in order.
    pub(crate) fn indexed(&self, name: &str) -> Vec<String> {
        let prefix = format!("{name}.");
        let keys = self.0.keys().filter_map(|key| key.strip_prefix(&prefix));
        let mut numbers: Vec<u32> = keys.filter_map(|rest| rest.split('.').next()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| format!("{prefix}{number}")).collect()
    }

    /// Whether anything lies under `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        let prefix = format!("{name}.");
        self.0.keys().any(|key| key == name || key.starts_with(&prefix))
    }

    /// Everything under a prefix, as it stands, without the prefix.
    pub(crate) fn under(&mut self, name: &str) -> Self {
        let prefix = format!("{name}.");
        let (inside, outside) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key.starts_with(&prefix));
        self.0 = outside;
        let inside: BTreeMap<_, _> = inside;
        Self(inside.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect())
    }

    /// Takes over, for each first part of a name that this one does not have, what the other says there.
    pub(crate) fn complete(&mut self, other: &Self) {
        let root = |key: &str| key.split('.').next().unwrap_or(key).to_owned();
        let known: BTreeSet<String> = self.0.keys().map(|key| root(key)).collect();
        let missing = other.0.iter().filter(|(key, _)| !known.contains(&root(key)));
        self.0.extend(missing.map(|(key, value)| (key.clone(), value.clone())));
    }

    pub(crate) fn peek(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn put(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// To be called before anything changes: refuses what no handler knows, and ends a dry run.
    pub(crate) fn finish(mut self) -> Result<(), Refusal> {
        let dry = self.flag("DryRun")? == Some(true);
        if let Some(name) = self.0.keys().next() {
            return Err(Refusal::client("UnknownParameter", format!("The parameter {name} is not recognized")));
        }
        if dry {
            let message = "Request would have succeeded, but DryRun flag is set.";
            return Err(Refusal::new(412, "DryRunOperation", message));
        }
        Ok(())
    }
}

fn decoded(text: &str) -> Result<String, Refusal> {
    let plain = text.replace('+', " ");
    let decoded = percent_decode_str(&plain).decode_utf8();
    decoded.map(Into::into).map_err(|_| Refusal::client("MalformedQueryString", "The query string is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order_and_what_is_left_is_refused() {
        let mut form = Form::parse("A.10=x&A.2=y%20z&B.1.Name=n&C=1").unwrap();
        assert_eq!(form.list("A"), ["y z", "x"]);
        assert_eq!(form.indexed("B"), ["B.1"]);
        assert_eq!(form.text("B.1.Name").as_deref(), Some("n"));
        assert_eq!(form.finish().unwrap_err().message, "The parameter C is not recognized");
    }

    #[test]
    fn a_dry_run_ends_before_anything_happens() {
        assert_eq!(Form::parse("DryRun=true").unwrap().finish().unwrap_err().code, "DryRunOperation");
    }
}
