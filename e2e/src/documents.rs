//! The document server as it is, seen with MongoDB's own driver.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use mongodb::Client;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;

use crate::Environment;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A database of the server.
pub struct Documents(mongodb::Database);

impl Documents {
    /// The database of this name.
    ///
    /// # Errors
    /// When the environment's address isn't one.
    pub async fn of(environment: &Environment, database: &str) -> Result<Self> {
        let uri = format!("mongodb://{}/", environment.addresses.documents);
        let mut options = ClientOptions::parse(uri).await?;
        options.server_selection_timeout = Some(TIMEOUT);
        let client = Client::with_options(options)?;
        Ok(Documents(client.database(database)))
    }

    /// All documents of a collection.
    ///
    /// # Errors
    /// What the server says.
    pub async fn all(&self, collection: &str) -> Result<Vec<Document>> {
        let collection = self.0.collection::<Document>(collection);
        let found = collection.find(doc! {}).await;
        Ok(found.context("asking for documents")?.try_collect().await?)
    }

    /// Removes the database.
    ///
    /// # Errors
    /// What the server says.
    pub async fn drop(&self) -> Result<()> {
        Ok(self.0.drop().await?)
    }
}
