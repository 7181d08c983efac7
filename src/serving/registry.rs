//! The models that are served, by name.

use std::sync::Arc;

use dashmap::DashMap;

use super::handle::ModelHandle;
use crate::error::ApiError;

/// Name to live engine; shared by all handlers.
#[derive(Default)]
pub struct Registry {
    models: DashMap<String, Arc<ModelHandle>>,
}

impl Registry {
    /// The model that clients call `name`.
    ///
    /// # Errors
    /// 404 `model_not_found`.
    pub fn get(&self, name: &str) -> Result<Arc<ModelHandle>, ApiError> {
        self.find(name).ok_or_else(|| ApiError::model_not_found(name))
    }

    /// The same without an error to show.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<ModelHandle>> {
        self.models.get(name).map(|entry| entry.value().clone())
    }

    /// Serves `model` under its name; returns the one that had the name before.
    pub fn insert(&self, model: Arc<ModelHandle>) -> Option<Arc<ModelHandle>> {
        self.models.insert(model.name().to_owned(), model)
    }

    /// Serves `name` no more; what runs on it goes on.
    pub fn remove(&self, name: &str) -> Option<Arc<ModelHandle>> {
        self.models.remove(name).map(|(_, model)| model)
    }

    /// All models, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<ModelHandle>> {
        let mut models: Vec<_> = self.models.iter().map(|entry| entry.value().clone()).collect();
        models.sort_by(|a, b| a.name().cmp(b.name()));
        models
    }

    /// The model that is meant where a request may leave its name out: the only one.
    #[must_use]
    pub fn only(&self) -> Option<Arc<ModelHandle>> {
        let mut models = self.models.iter();
        let first = models.next()?;
        if models.next().is_some() { None } else { Some(first.value().clone()) }
    }
}
