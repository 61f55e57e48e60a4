//! The template's JSON Schema for editors and its reference for people, both made from the table of keys.

mod reference;

use serde_json::{Map, Value as Json, json};

use crate::keys::{CHECK, Key, Kind, Need, OPTION, STEP, TEMPLATE, Variant};

pub use reference::reference;

/// JSON Schema (draft 2020-12) of a template file.
///
/// A file may be a part of a template, so nothing is required outside of lists. Where a number or a boolean is wanted,
/// an expression in a string may stand as well.
pub fn template_schema() -> Json {
    let mut schema = table(TEMPLATE, false);
    let heading = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kiln template",
        "description": "What an image is: base, steps, checks, outputs.",
    });
    if let (Json::Object(schema), Json::Object(heading)) = (&mut schema, heading) {
        schema.extend(heading);
    }
    schema
}

fn table(keys: &[Key], in_list: bool) -> Json {
    let mut schema = object(keys, in_list);
    schema.insert("additionalProperties".to_owned(), Json::Bool(false));
    Json::Object(schema)
}

fn object(keys: &[Key], in_list: bool) -> Map<String, Json> {
    let properties: Map<String, Json> = keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Json::Object(properties));
    let required: Vec<&str> = keys.iter().filter(|key| key.need == Need::Required).map(|key| key.name).collect();
    if in_list && !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema
}

fn property(key: &Key) -> Json {
    let mut schema = kind(&key.kind);
    if let Json::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), json!(key.doc));
        if let Need::Default(text) = key.need {
            schema.insert("default".to_owned(), default(&key.kind, text));
        }
    }
    schema
}

fn default(kind: &Kind, text: &str) -> Json {
    match kind {
        Kind::Bool => Json::Bool(text == "true"),
        Kind::Integer(..) => text.parse::<i64>().map_or(Json::Null, Json::from),
        Kind::Words(_) | Kind::Strings => text.split(", ").collect(),
        _ => json!(text),
    }
}

fn or_expression(schema: &Json) -> Json {
    json!({ "anyOf": [schema, { "type": "string", "pattern": "\\{\\{" }] })
}

fn kind(kind: &Kind) -> Json {
    match kind {
        Kind::String => json!({ "type": "string" }),
        Kind::Bool => or_expression(&json!({ "type": "boolean" })),
        Kind::Integer(least, most) => or_expression(&json!({ "type": "integer", "minimum": least, "maximum": most })),
        Kind::Duration => {
            json!({ "type": "string", "pattern": r"\{\{|^\s*([0-9]+\s*[a-z]+\s*)+$", "examples": ["90s", "10 min"] })
        }
        Kind::Caching => json!({ "anyOf": [{ "const": false }, self::kind(&Kind::Duration)] }),
        Kind::Size => {
            json!({ "type": "string", "pattern": r"\{\{|^[0-9]+\s*([KMGT]i)?B?$", "examples": ["512 MiB", "4 GiB"] })
        }
        Kind::Word(words) => or_expression(&json!({ "enum": words })),
        Kind::Words(words) => {
            or_expression(&json!({ "type": "array", "items": or_expression(&json!({ "enum": words })) }))
        }
        Kind::Strings => or_expression(&json!({ "type": "array", "items": { "type": "string" } })),
        Kind::StringMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Condition => json!({ "type": ["string", "boolean"] }),
        Kind::Any => json!({}),
        Kind::Table(keys) => table(keys, false),
        Kind::Tables(keys) => json!({ "type": "array", "items": table(keys, true) }),
        Kind::Steps(keys) => json!({ "type": "array", "items": object(keys, true) }),
        Kind::Variants(common, variants) => {
            let items: Vec<Json> = variants.iter().map(|variant| self::variant(common, variant)).collect();
            json!({ "type": "array", "items": { "type": "object", "required": ["use"], "oneOf": items } })
        }
        Kind::Named(keys) => json!({ "type": "object", "additionalProperties": table(keys, false) }),
        Kind::Axes => json!({
            "type": "object",
            "additionalProperties": {
                "type": "array",
                "minItems": 1,
                "items": { "anyOf": [
                    { "type": ["string", "integer", "boolean"] },
                    { "type": "object", "required": ["name"], "properties": { "name": { "type": "string" } } },
                ] },
            },
        }),
    }
}

fn variant(common: &[Key], variant: &Variant) -> Json {
    let mut schema = object(common, true);
    let more = object(variant.keys, true);
    if let (Some(Json::Object(properties)), Some(Json::Object(added))) =
        (schema.get_mut("properties"), more.get("properties"))
    {
        properties.extend(added.clone());
        properties.insert("use".to_owned(), json!({ "const": variant.name, "description": variant.doc }));
    }
    if let (Some(Json::Array(required)), Some(Json::Array(added))) = (schema.get_mut("required"), more.get("required"))
    {
        required.extend(added.iter().cloned());
    }
    schema.insert("title".to_owned(), json!(variant.name));
    schema.insert("additionalProperties".to_owned(), Json::Bool(false));
    Json::Object(schema)
}

/// Tables whose keys the reference shows in sections of their own.
fn subtables(kind: &Kind) -> Option<(&'static [Key], bool)> {
    match kind {
        Kind::Table(keys) | Kind::Named(keys) => Some((keys, false)),
        Kind::Tables(keys) => Some((keys, true)),
        Kind::Steps(_) => Some((STEP, true)),
        Kind::Variants(..) => Some((CHECK, true)),
        _ => None,
    }
}

/// The keys of an option in `provisioner.toml`, for the provisioner reference.
pub fn option_reference() -> String {
    reference::rows(OPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undocumented(keys: &[Key], found: &mut Vec<&'static str>) {
        for key in keys {
            if key.doc.is_empty() || !key.doc.ends_with(['.', '`']) {
                found.push(key.name);
            }
            if let Some((keys, _)) = subtables(&key.kind) {
                undocumented(keys, found);
            }
        }
    }

    #[test]
    fn every_key_is_documented() {
        let mut found = Vec::new();
        undocumented(TEMPLATE, &mut found);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn the_schema_knows_every_section() {
        let schema = template_schema();
        for key in TEMPLATE {
            assert!(schema["properties"][key.name]["description"].is_string(), "{}", key.name);
        }
        assert_eq!(schema["properties"]["builder"]["properties"]["qemu"]["properties"]["memory"]["default"], "1 GiB");
        assert_eq!(schema["properties"]["check"]["items"]["oneOf"][1]["properties"]["use"]["const"], "http");
    }
}
