//! "Did you mean": the nearest of some names, if it is near enough to be a slip of the finger.

/// The known name nearest to what was typed, where at most a third of it differs.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase().replace('_', "-");
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&typed, &name.to_lowercase().replace('_', "-")), name))
        .filter(|(distance, name)| *distance <= (name.len().max(typed.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `did you mean 'x'? ` or nothing, to stand before the list of what there is.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(typed, known).map(|name| format!("did you mean '{name}'? ")).unwrap_or_default()
}

/// Names as a list for people.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["path", "on-error", "records"];
        assert_eq!(nearest("pth", known), Some("path"));
        assert_eq!(nearest("on_error", known), Some("on-error"));
        assert_eq!(nearest("record", known), Some("records"));
        assert_eq!(nearest("topic", known), None);
    }
}
