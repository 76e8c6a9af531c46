//! Creates a machine from a template, shows what it prints for a while, and deletes it.
//!
//! ```sh
//! DWCP_ADDRESS=https://127.0.0.1:4610 DWCP_CA_FILE=ca.pem DWCP_KEY=dwcp_… cargo run -p dwcp-sdk --example first_vm
//! ```

use std::error::Error;
use std::time::Duration;

use dwcp_sdk::types::VmCreate;
use dwcp_sdk::{Client, Profile};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::new(Profile {
        address: std::env::var("DWCP_ADDRESS")?,
        ca_pem: std::fs::read_to_string(std::env::var("DWCP_CA_FILE")?)?,
        api_key: std::env::var("DWCP_KEY")?,
    })?;

    let request = VmCreate {
        template: Some("dwcp/worker".into()),
        ..VmCreate::new("first")
    };
    let created = client.vm_create("default", &request).await?;
    client.operation_wait(&created.operation.id).await?;
    println!("{} runs on {}", created.vm.name, created.vm.host);

    let mut console = client.vm_console("default", "first").await?;
    let shown = async {
        while let Some(bytes) = console.output.next().await? {
            print!("{}", String::from_utf8_lossy(&bytes));
        }
        Ok::<_, std::io::Error>(())
    };
    // It prints for ever; some seconds are enough.
    if let Ok(ended) = tokio::time::timeout(Duration::from_secs(5), shown).await {
        ended?;
    }

    client.vm_delete("default", "first", true).await?;
    Ok(())
}
