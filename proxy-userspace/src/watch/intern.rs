//! One copy of each name, however many objects carry it: a node's name stands in every endpoint that runs there.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The names in use. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    names: HashSet<Arc<str>>,
    /// Unused names are forgotten when there are this many.
    sweep_at: usize,
}

impl Names {
    /// The shared copy of `text`.
    pub fn get(&self, text: &str) -> Arc<str> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = known.names.get(text) {
            return name.clone();
        }
        if known.names.len() >= known.sweep_at {
            known.names.retain(|name| Arc::strong_count(name) > 1);
            known.sweep_at = (2 * known.names.len()).max(1024);
        }
        let name: Arc<str> = text.into();
        known.names.insert(name.clone());
        name
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap().names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once() {
        let names = Names::default();
        assert!(Arc::ptr_eq(&names.get("node-1"), &names.clone().get("node-1")));
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn names_that_nobody_carries_any_more_are_forgotten() {
        let names = Names::default();
        let kept = names.get("kept");
        for i in 0..10_000 {
            names.get(&format!("pod-{i}"));
        }
        assert!(names.len() <= 2048, "{}", names.len());
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
    }
}
