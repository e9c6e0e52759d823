from dynamo.router.main import main

main()
