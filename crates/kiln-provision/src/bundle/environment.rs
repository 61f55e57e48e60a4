//! Options as environment variables, for scripts that do not want to read JSON.
//!
//! `KILN_OPT_<NAME>` for a scalar; `_COUNT` and `_<i>` for a list; `_COUNT`, `_KEYS` (one a line), `_<i>_KEY` and
//! `_<i>_VALUE` for a map; `_<FIELD>` for a table. Nothing is set for an option without a value.

use std::collections::BTreeMap;

use kiln_core::manifest::{OptionKind, OptionSpec};
use serde_json::Value;

use crate::error::BundleError;

/// Linux gives a program a quarter of its stack, 2 MiB by default, for arguments and environment; half of that is left
/// to the tools the program runs.
const LIMIT: usize = 1 << 20;
/// `MAX_ARG_STRLEN`: the kernel's limit of one variable, name and end included.
const LIMIT_ONE: usize = 128 << 10;

pub(super) fn flatten(
    specs: &BTreeMap<String, OptionSpec>,
    options: &Value,
) -> Result<BTreeMap<String, String>, BundleError> {
    let mut flat = Flat::default();
    flat.table(specs, options, "KILN_OPT", "")?;
    Ok(flat.variables.into_iter().map(|(name, (value, _))| (name, value)).collect())
}

/// Refuses what no program's environment can hold.
pub(super) fn check(env: &BTreeMap<String, String>) -> Result<(), BundleError> {
    let size = |(name, value): (&String, &String)| name.len() + value.len() + 2;
    if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
        return Err(BundleError::Nul { option: name.clone() });
    }
    if let Some(bytes) = env.iter().map(size).find(|bytes| *bytes > LIMIT_ONE) {
        return Err(BundleError::TooLarge { bytes, limit: LIMIT_ONE });
    }
    match env.iter().map(size).sum() {
        bytes if bytes > LIMIT => Err(BundleError::TooLarge { bytes, limit: LIMIT }),
        _ => Ok(()),
    }
}

/// Variable to its value and the option it comes from.
#[derive(Default)]
struct Flat {
    variables: BTreeMap<String, (String, String)>,
}

impl Flat {
    fn set(&mut self, variable: String, value: String, option: &str) -> Result<(), BundleError> {
        if value.contains('\0') {
            return Err(BundleError::Nul { option: option.to_owned() });
        }
        match self.variables.insert(variable.clone(), (value, option.to_owned())) {
            Some((_, one)) => Err(BundleError::Collision { one, two: option.to_owned(), variable }),
            None => Ok(()),
        }
    }

    fn table(
        &mut self,
        specs: &BTreeMap<String, OptionSpec>,
        value: &Value,
        prefix: &str,
        option: &str,
    ) -> Result<(), BundleError> {
        for (name, spec) in specs {
            if let Some(value) = value.get(name) {
                let inside = if option.is_empty() { name.clone() } else { format!("{option}.{name}") };
                let upper = name.to_ascii_uppercase().replace('-', "_");
                self.value(&spec.kind, value, &format!("{prefix}_{upper}"), &inside)?;
            }
        }
        Ok(())
    }

    fn value(&mut self, kind: &OptionKind, value: &Value, name: &str, option: &str) -> Result<(), BundleError> {
        match (kind, value) {
            (OptionKind::List(item), Value::Array(values)) => {
                self.set(format!("{name}_COUNT"), values.len().to_string(), option)?;
                for (index, value) in values.iter().enumerate() {
                    self.value(item, value, &format!("{name}_{index}"), &format!("{option}[{index}]"))?;
                }
                Ok(())
            }
            (OptionKind::Map(item), Value::Object(values)) => {
                self.set(format!("{name}_COUNT"), values.len().to_string(), option)?;
                let keys: Vec<&str> = values.keys().map(String::as_str).collect();
                self.set(format!("{name}_KEYS"), keys.join("\n"), option)?;
                for (index, (key, value)) in values.iter().enumerate() {
                    self.set(format!("{name}_{index}_KEY"), key.clone(), option)?;
                    self.value(item, value, &format!("{name}_{index}_VALUE"), &format!("{option}.{key}"))?;
                }
                Ok(())
            }
            (OptionKind::Table(specs), Value::Object(_)) => self.table(specs, value, name, option),
            (_, Value::String(text)) => self.set(name.to_owned(), text.clone(), option),
            (_, scalar) => self.set(name.to_owned(), scalar.to_string(), option),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(kind: OptionKind) -> OptionSpec {
        OptionSpec::new(kind, String::new())
    }

    fn specs(list: Vec<(&str, OptionKind)>) -> BTreeMap<String, OptionSpec> {
        list.into_iter().map(|(name, kind)| (name.to_owned(), spec(kind))).collect()
    }

    #[test]
    fn every_kind_has_its_variables() {
        let fields = specs(vec![("path", OptionKind::String), ("keep", OptionKind::Bool)]);
        let specs = specs(vec![
            ("name", OptionKind::String),
            ("count", OptionKind::Integer),
            ("list", OptionKind::List(Box::new(OptionKind::String))),
            ("map", OptionKind::Map(Box::new(OptionKind::String))),
            ("files", OptionKind::List(Box::new(OptionKind::Table(fields)))),
            ("absent", OptionKind::String),
        ]);
        let options = json!({
            "name": "a b", "count": 3, "list": ["x", "y\nz"], "map": {"b.c": "1", "a": "2"},
            "files": [{"path": "/p", "keep": true}],
        });
        let found: Vec<String> =
            flatten(&specs, &options).unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            found,
            [
                "KILN_OPT_COUNT=3",
                "KILN_OPT_FILES_0_KEEP=true",
                "KILN_OPT_FILES_0_PATH=/p",
                "KILN_OPT_FILES_COUNT=1",
                "KILN_OPT_LIST_0=x",
                "KILN_OPT_LIST_1=y\nz",
                "KILN_OPT_LIST_COUNT=2",
                "KILN_OPT_MAP_0_KEY=a",
                "KILN_OPT_MAP_0_VALUE=2",
                "KILN_OPT_MAP_1_KEY=b.c",
                "KILN_OPT_MAP_1_VALUE=1",
                "KILN_OPT_MAP_COUNT=2",
                "KILN_OPT_MAP_KEYS=a\nb.c",
                "KILN_OPT_NAME=a b",
            ]
        );
    }

    #[test]
    fn two_options_never_share_a_variable() {
        let specs =
            specs(vec![("list", OptionKind::List(Box::new(OptionKind::String))), ("list_count", OptionKind::Integer)]);
        let error = flatten(&specs, &json!({"list": [], "list_count": 1})).unwrap_err();
        assert!(matches!(error, BundleError::Collision { .. }), "{error}");
    }

    #[test]
    fn refuses_what_an_environment_cannot_hold() {
        let specs = specs(vec![("a", OptionKind::String)]);
        assert!(matches!(flatten(&specs, &json!({"a": "x\0y"})), Err(BundleError::Nul { .. })));
        let env = |bytes: usize| BTreeMap::from([("A".to_owned(), "x".repeat(bytes))]);
        assert!(check(&env(100_000)).is_ok());
        assert!(matches!(check(&env(200_000)), Err(BundleError::TooLarge { .. })));
    }
}
