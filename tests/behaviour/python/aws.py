"""moto in AWS's place, with one user, whose signatures it checks; and calls to it.

aws.py serve <port>                          until it is killed; prints the user's key as a line of JSON
aws.py create|put <port> <id> <key> <secret> <text>   a secret, or what it holds from now on; prints its ARN
"""
import json
import os
import sys
import threading

import boto3

command, port = sys.argv[1], sys.argv[2]


def client(service, key="anybody", secret="anything"):
    return boto3.client(service, endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1",
                        aws_access_key_id=key, aws_secret_access_key=secret)


if command == "serve":
    # The three calls below; then everybody must sign.
    os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "3"
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address="127.0.0.1", port=int(port)).start()
    iam = client("iam")
    iam.create_user(UserName="gateway")
    key = iam.create_access_key(UserName="gateway")["AccessKey"]
    policy = {"Version": "2012-10-17",
              "Statement": {"Effect": "Allow", "Action": "secretsmanager:*", "Resource": "*"}}
    iam.put_user_policy(UserName="gateway", PolicyName="secrets", PolicyDocument=json.dumps(policy))
    print(json.dumps({"id": key["AccessKeyId"], "key": key["SecretAccessKey"]}), flush=True)
    threading.Event().wait()
else:
    secrets = client("secretsmanager", sys.argv[3], sys.argv[4])
    name, text = sys.argv[5], sys.argv[6]
    if command == "create":
        answer = secrets.create_secret(Name=name, SecretString=text)
    else:
        answer = secrets.put_secret_value(SecretId=name, SecretString=text)
    print(answer["ARN"])
