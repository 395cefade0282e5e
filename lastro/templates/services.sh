# Written by `make deployment` from lastro/templates/services.sh and the list of services; do not edit. The names of the services, for the scripts
# beside this file.
services=({{ services|map(attribute="name")|join(" ") }})
