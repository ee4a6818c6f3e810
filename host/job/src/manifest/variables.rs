//! `${NAME}` in the options of connectors: secrets stay out of the manifest, and out of the sandbox.

use toml::Value;

/// Replaces `${NAME}` in every text of a value; `$${` stands for `${` itself. The error names what is missing.
pub fn substitute(value: Value, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(in_text(&text, lookup)?),
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| substitute(item, lookup)).collect::<Result<_, _>>()?)
        }
        Value::Table(table) => Value::Table(
            table
                .into_iter()
                .map(|(key, value)| Ok((key, substitute(value, lookup)?)))
                .collect::<Result<_, String>>()?,
        ),
        other => other,
    })
}

fn in_text(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let (name, behind) = after.split_once('}').ok_or_else(|| format!("'${{{after}' has no closing brace"))?;
        out.push_str(&lookup(name).ok_or_else(|| format!("the environment variable '{name}' is not set"))?);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_escapes_are_not() {
        let lookup = |name: &str| (name == "USER").then(|| "ada".to_owned());
        assert_eq!(in_text("u=${USER}, p=$${USER} $5 ${USER}!", &lookup).unwrap(), "u=ada, p=${USER} $5 ada!");
        assert_eq!(in_text("${NO}", &lookup).unwrap_err(), "the environment variable 'NO' is not set");
        assert_eq!(in_text("a${NO", &lookup).unwrap_err(), "'${NO' has no closing brace");
    }
}
