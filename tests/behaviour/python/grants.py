"""Gives users ACLs: grants.py <bootstrap servers> <JSON>, `{user: [[resource type, name, pattern, operation], …]}`."""

import json
import sys

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

server, users = sys.argv[1], json.loads(sys.argv[2])
bindings = [
    AclBinding(
        ResourceType[kind], name, ResourcePatternType[pattern], f"User:{user}", "*", AclOperation[operation],
        AclPermissionType.ALLOW,
    )
    for user, grants in users.items()
    for kind, name, pattern, operation in grants
]
admin = AdminClient({"bootstrap.servers": server})
for made in admin.create_acls(bindings).values():
    made.result(60)
