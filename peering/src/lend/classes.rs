//! Which of this cluster's storage classes are lent.

use liquid_crds::LendStorage;
use liquid_runtime::storage_classes::StorageClasses;

/// What consumers call the default class where the provider has not chosen what to lend.
const DEFAULT_NAME: &str = "default";

/// What is lent under `policy`: what consumers call it, and its class here. The first one is for claims that ask for none.
fn lent<'a>(classes: &'a StorageClasses, policy: Option<&'a LendStorage>) -> Vec<(&'a str, &'a str)> {
    match policy {
        None => classes.default_of(|_| true).map(|class| (DEFAULT_NAME, class)).into_iter().collect(),
        Some(policy) => policy
            .classes
            .iter()
            .map(|lent| (lent.name.as_str(), lent.storage_class_name.as_deref().unwrap_or(&lent.name)))
            .collect(),
    }
}

/// What consumers may ask for under `policy`.
pub(crate) fn offered(classes: &StorageClasses, policy: Option<&LendStorage>) -> Vec<String> {
    let there = lent(classes, policy).into_iter().filter(|(_, class)| classes.get(class).is_some());
    there.map(|(name, _)| name.to_owned()).collect()
}

/// The class of a claim that asks for `wanted`.
///
/// # Errors
/// If there is none for it; a sentence for people at home.
pub(crate) fn resolve<'a>(
    classes: &'a StorageClasses,
    wanted: Option<&str>,
    policy: Option<&'a LendStorage>,
) -> Result<&'a str, String> {
    let lent = lent(classes, policy);
    let found = match wanted {
        None => lent.first(),
        Some(wanted) => lent.iter().find(|(name, _)| *name == wanted),
    };
    let Some((name, class)) = found else {
        let offered = offered(classes, policy).join(", ");
        return Err(match (wanted, policy) {
            (Some(wanted), _) if !offered.is_empty() => {
                format!("the provider does not offer storage class {wanted:?}; it offers {offered}")
            }
            (_, None) => "the provider has no default storage class".to_owned(),
            (_, Some(_)) => "the provider offers no storage".to_owned(),
        });
    };
    classes.get(class).map(|(class, _)| class).ok_or_else(|| {
        format!("the provider offers storage class {name:?}, but has no class {class:?} for it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use liquid_crds::LentClass;
    use liquid_runtime::storage_classes::Class;

    fn classes(names: &[(&str, Option<&str>)]) -> StorageClasses {
        let class = |(name, default_since): &(&str, Option<&str>)| {
            (
                (*name).to_owned(),
                Class { default_since: default_since.map(str::to_owned), ..Class::default() },
            )
        };
        names.iter().map(class).collect()
    }

    fn policy(classes: &[(&str, Option<&str>)]) -> LendStorage {
        let lent = |(name, class): &(&str, Option<&str>)| LentClass {
            name: (*name).to_owned(),
            storage_class_name: class.map(str::to_owned),
        };
        LendStorage { classes: classes.iter().map(lent).collect() }
    }

    #[test]
    fn without_a_policy_the_default_class_is_lent_and_no_other() {
        let there = classes(&[("slow", Some("2025")), ("fast", Some("2026")), ("other", None)]);
        assert_eq!(offered(&there, None), ["default"]);
        assert_eq!(resolve(&there, None, None), Ok("fast"));
        assert_eq!(resolve(&there, Some("default"), None), Ok("fast"));
        let refused = resolve(&there, Some("other"), None).unwrap_err();
        assert!(refused.contains("\"other\"") && refused.ends_with("it offers default"), "{refused}");
        let refused = resolve(&StorageClasses::default(), None, None).unwrap_err();
        assert!(refused.contains("no default"), "{refused}");
    }

    #[test]
    fn a_policy_names_what_is_lent() {
        let there = classes(&[("ssd", None), ("hdd", Some("2026"))]);
        let lent = policy(&[("fast", Some("ssd")), ("hdd", None), ("lost", None)]);
        assert_eq!(offered(&there, Some(&lent)), ["fast", "hdd"]);
        assert_eq!(resolve(&there, None, Some(&lent)), Ok("ssd"));
        assert_eq!(resolve(&there, Some("hdd"), Some(&lent)), Ok("hdd"));
        assert!(resolve(&there, Some("ssd"), Some(&lent)).unwrap_err().contains("it offers fast, hdd"));
        assert!(resolve(&there, Some("lost"), Some(&lent)).unwrap_err().contains("no class \"lost\""));
        assert!(resolve(&there, None, Some(&policy(&[]))).unwrap_err().contains("offers no storage"));
    }
}
