//! Names that resemble a name that does not exist.

/// Returns up to three names that resemble `name`, the most similar one first.
pub(crate) fn nearest<'a>(name: &str, names: &[&'a str]) -> Vec<&'a str> {
    let distance = |other: &str| {
        let (name, other) = (name.to_lowercase(), other.to_lowercase());
        if name.len() > 2 && (other.contains(&name) || name.contains(&other)) {
            return 1;
        }
        strsim::damerau_levenshtein(&name, &other)
    };
    let near = names.iter().map(|other| (distance(other), *other));
    let mut near: Vec<_> = near.filter(|(distance, _)| *distance <= 1 + name.len() / 4).collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_suggested() {
        let names = ["orders", "orders-dev", "payments", "border"];
        assert_eq!(nearest("ordrs", &names), ["orders"]);
        assert_eq!(nearest("Orders", &names), ["orders", "orders-dev", "border"]);
        assert_eq!(nearest("clicks", &names), [""; 0]);
    }
}
