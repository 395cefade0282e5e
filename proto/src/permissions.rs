//! Permissions, as the contracts list them: what methods ask for and roles allow.

pub use crate::r#type::v1::Permission;

impl Permission {
    /// As tokens carry it: `read:accounts`.
    pub const fn name(self) -> &'static str {
        include!(concat!(env!("OUT_DIR"), "/permissions.rs"))
    }
}

impl AsRef<str> for Permission {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::METHODS;
    use lastro_mesh::identity::Access;

    #[test]
    fn every_permission_has_the_name_that_methods_ask_for() {
        let names: Vec<&str> = (1..100).filter_map(|number| Permission::try_from(number).ok()).map(Permission::name).collect();
        assert!(names.contains(&"read:accounts") && names.iter().all(|name| name.split(':').count() == 2), "{names:?}");
        for method in METHODS {
            if let Access::Permission(permission) = method.access {
                assert!(names.contains(&permission), "{}", method.path);
            }
        }
    }
}
