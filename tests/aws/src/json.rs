//! The members of a JSON request. Reading one takes it out; what nobody took is refused.

use serde_json::{Map, Value};

use crate::refusal::Refusal;

#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn of(value: Value) -> Result<Self, Refusal> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(Refusal::client("SerializationException", "Start of structure or map expected")),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "string")),
        }
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<String, Refusal> {
        self.text(name)?.ok_or_else(|| Refusal::client("ValidationException", format!("Value null at '{name}'")))
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(name, "number")),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| wrong(name, "boolean")),
        }
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Vec<Value>, Refusal> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(wrong(name, "list")),
        }
    }

    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let list = self.list(name)?.into_iter();
        list.map(|value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(name, "list of strings"))).collect()
    }

    /// `[{Key, Value}]`.
    pub(crate) fn tags(&mut self, name: &str) -> Result<crate::world::Tags, Refusal> {
        let list = self.list(name)?.into_iter();
        list.map(|tag| {
            let mut tag = Self::of(tag)?;
            let pair = (tag.required("Key")?, tag.text("Value")?.unwrap_or_default());
            tag.finish()?;
            Ok(pair)
        })
        .collect()
    }

    /// To be called before anything changes.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Refusal::client("ValidationException", format!("the fake does not know the parameter {name}")))
            }
        }
    }
}

fn wrong(name: &str, kind: &str) -> Refusal {
    Refusal::client("SerializationException", format!("{name} is not a {kind}"))
}
