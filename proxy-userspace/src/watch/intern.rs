//! One copy of each name, however many objects carry it, and of what endpoints have in common: a node's name stands in
//! every endpoint that runs there.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::model::Placement;

/// The names in use. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    names: Shared<str>,
    placements: Shared<Placement>,
}

/// What is in use of one kind.
#[derive(Debug)]
struct Shared<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// What is unused is forgotten when there are this many.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), sweep_at: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    fn get<Q>(&mut self, one: Q) -> Arc<T>
    where
        Q: Borrow<T> + Into<Arc<T>>,
    {
        if let Some(known) = self.all.get(one.borrow()) {
            return known.clone();
        }
        if self.all.len() >= self.sweep_at {
            self.all.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (2 * self.all.len()).max(1024);
        }
        let new: Arc<T> = one.into();
        self.all.insert(new.clone());
        new
    }
}

impl Names {
    /// The shared copy of `text`.
    pub fn get(&self, text: &str) -> Arc<str> {
        self.known().names.get(text)
    }

    /// The shared copy of `placement`.
    pub fn placement(&self, placement: Placement) -> Arc<Placement> {
        self.known().placements.get(placement)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known().names.all.len()
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
    fn what_endpoints_of_one_node_have_in_common_is_kept_once() {
        let names = Names::default();
        let on =
            |node: &str| names.placement(Placement { node: Some(names.get(node)), ..Placement::default() });
        assert!(Arc::ptr_eq(&on("node-1"), &on("node-1")));
        assert_ne!(on("node-1"), on("node-2"));
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
