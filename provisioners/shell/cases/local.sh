#!/bin/sh
echo "from a file: $1"
