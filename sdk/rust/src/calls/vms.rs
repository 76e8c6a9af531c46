//! Virtual machines and their migrations.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::Method;
use reqwest::header::IF_MATCH;

use crate::error::Result;
use crate::pages::Listing;
use crate::transport::Client;
use crate::types::{
    ForkRequest, MigrateRequest, Migration, Operation, Resolve, Vm, VmCreate, VmCreated, VmForked,
};

impl Client {
    /// Machines of a project.
    pub fn vm_list(&self, project: &str) -> Listing<Vm> {
        self.listing(&["v1", "projects", project, "vms"], &[])
    }

    /// One, by name.
    pub async fn vm_get(&self, project: &str, name: &str) -> Result<Vm> {
        self.get(&["v1", "projects", project, "vms", name], &[])
            .await
    }

    /// Creates one; its start goes on as the operation in the answer.
    pub async fn vm_create(&self, project: &str, request: &VmCreate) -> Result<VmCreated> {
        self.post(&["v1", "projects", project, "vms"], &[], request)
            .await
    }

    /// Starts one.
    pub async fn vm_start(&self, project: &str, name: &str) -> Result<Operation> {
        let path = ["v1", "projects", project, "vms", name, "start"];
        self.object(self.call(Method::POST, &path, &[])).await
    }

    /// Stops one: by its power button, or at once if `force`.
    pub async fn vm_stop(&self, project: &str, name: &str, force: bool) -> Result<Operation> {
        let path = ["v1", "projects", project, "vms", name, "stop"];
        self.object(self.call(Method::POST, &path, forced(force)))
            .await
    }

    /// Deletes one that does not run (or runs, if `force`).
    pub async fn vm_delete(&self, project: &str, name: &str, force: bool) -> Result<()> {
        let path = ["v1", "projects", project, "vms", name];
        self.delete(&path, forced(force)).await
    }

    /// Deletes one unless it changed since it was read under `etag`.
    pub async fn vm_delete_if(
        &self,
        project: &str,
        name: &str,
        force: bool,
        etag: &str,
    ) -> Result<()> {
        let path = ["v1", "projects", project, "vms", name];
        let call = self.call(Method::DELETE, &path, forced(force));
        self.send(call.header(IF_MATCH, etag)).await.map(drop)
    }

    /// What one printed on its serial line; with `follow` the stream goes on as it prints.
    pub async fn vm_log(
        &self,
        project: &str,
        name: &str,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + 'static> {
        let path = ["v1", "projects", project, "vms", name, "log"];
        let follow = if follow { "true" } else { "false" };
        let call = self.call(Method::GET, &path, &[("follow", follow)]);
        // A quiet machine is not a broken connection.
        let response = self.open_quiet(&call).await?;
        let client = self.clone();
        Ok(response
            .bytes_stream()
            .map(move |piece| piece.map_err(|error| client.unreachable(error.without_url()))))
    }

    /// Moves one to another host while it runs; the operation carries the migration.
    pub async fn vm_migrate(
        &self,
        project: &str,
        name: &str,
        request: &MigrateRequest,
    ) -> Result<Operation> {
        let path = ["v1", "projects", project, "vms", name, "migrate"];
        self.post(&path, &[], request).await
    }

    /// Makes forks of a template; with `seal`, of a machine that becomes one by it. The operation starts them.
    pub async fn vm_fork(
        &self,
        project: &str,
        name: &str,
        request: &ForkRequest,
    ) -> Result<VmForked> {
        let path = ["v1", "projects", project, "vms", name, "fork"];
        self.post(&path, &[], request).await
    }

    /// Migrations of a project, newest first.
    pub fn migration_list(&self, project: &str) -> Listing<Migration> {
        self.listing(&["v1", "projects", project, "migrations"], &[])
    }

    /// One.
    pub async fn migration_get(&self, project: &str, id: &str) -> Result<Migration> {
        self.get(&["v1", "projects", project, "migrations", id], &[])
            .await
    }

    /// Ends a doubt by hand: `fenced` names the host that will never run the machine under this epoch.
    pub async fn migration_resolve(
        &self,
        project: &str,
        id: &str,
        fenced: &str,
    ) -> Result<Migration> {
        let path = ["v1", "projects", project, "migrations", id, "resolve"];
        let fenced = fenced.to_owned();
        self.post(&path, &[], &Resolve { fenced }).await
    }
}

fn forced(force: bool) -> &'static [(&'static str, &'static str)] {
    if force { &[("force", "true")] } else { &[] }
}
